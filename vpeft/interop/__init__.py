"""Files of other projects: one file a format, and for the official code of a method one file with its names.

peft_format.py       Hugging Face peft's folders, out and in (peft_lora.py: LoRA and DoRA; peft_ia3.py)
official.py          checkpoints of official code, in (vpt.py adaptformer.py ssf.py fact.py, stated as a layout.py)
imported.py          what was read becomes an adapter
timm_model.py        a merged model as timm's own
open_clip_model.py   ... as open_clip's, both towers
hf_folder.py         ... as a folder of transformers
"""
