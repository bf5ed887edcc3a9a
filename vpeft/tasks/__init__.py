"""One LightningModule a task, and the callbacks they share."""
