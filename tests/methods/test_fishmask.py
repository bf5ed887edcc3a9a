"""FishMask: the entries with the largest sum of squared gradients learn, and no others."""

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters import make
from tests.zoo import backbone, image, shake, tuned
from vpeft.checkpoint import load_adapter, save_adapter
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.tuned import Tuned

LABELS = torch.tensor([0, 2])


def batches():
    return [(image(seed), LABELS) for seed in range(3)]


def candidates(model):
    """Every weight and bias of the tiny ViT but those of its embeddings and class token, by name."""
    embeddings = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    return {name: p for name, p in model.named_parameters() if name not in embeddings}


def dense(method, body):
    """The change of every tensor of the merged backbone."""
    before = {name: p.detach().clone() for name, p in candidates(body.model).items()}
    method.merge(body)
    return {name: p.detach() - before[name] for name, p in candidates(body.model).items()}


@pytest.mark.parametrize("samples", [6, 100])
def test_the_mask_is_where_single_images_have_the_largest_squared_gradients(samples):
    model = shake(tuned("timm_vit", "fishmask"))
    method = model.methods[0]
    with torch.no_grad():
        method.values.zero_()
    plain = backbone("timm_vit")
    squares = {name: torch.zeros_like(p) for name, p in candidates(plain.model).items()}
    for images, labels in batches():
        for index in range(2):
            plain.model.zero_grad()
            logits = model.head(plain(images[index : index + 1]))
            torch.nn.functional.cross_entropy(logits, labels[index : index + 1]).backward()
            for name, p in candidates(plain.model).items():
                squares[name] += p.grad.square()

    method.samples = samples
    method.prepare(model, batches(), 0)
    with torch.no_grad():
        method.values.fill_(1.0)
    changes = dense(method, backbone("timm_vit"))
    chosen = torch.cat([changes[name].flatten() for name in squares]) > 0.5
    scores = torch.cat([square.flatten() for square in squares.values()])
    assert chosen.sum() == len(method.values)
    assert scores[chosen].min() >= scores[~chosen].max() * (1 - 1e-3)
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_fewer_samples_are_drawn_from_all_images():
    method = tuned("timm_vit", "fishmask").methods[0]
    method.samples = 2
    torch.manual_seed(0)
    drawn = [int(image.flatten()[0] * 1e6) for image, _ in method._drawn(batches())]
    assert len(drawn) == 2
    firsts = {tuple(int(x.flatten()[0] * 1e6) for x, _ in method._drawn(batches())) for _ in range(20)}
    assert len(firsts) > 5


def test_only_the_first_epoch_chooses():
    model = shake(tuned("timm_vit", "fishmask"))
    before = model.methods[0].places.clone()
    model.methods[0].prepare(model, batches(), 1)
    assert torch.equal(model.methods[0].places, before)
    model.methods[0].prepare(model, batches(), 0)
    assert not torch.equal(model.methods[0].places, before)


def test_gradients_are_those_of_the_chosen_entries():
    model = shake(tuned("timm_vit", "fishmask"))
    model.methods[0].prepare(model, batches(), 0)
    model(image()).square().sum().backward()
    merged = backbone("timm_vit")
    merged.model.load_state_dict(model.merge())
    model.head(merged(image())).square().sum().backward()
    method = model.methods[0]
    got = method.values.grad
    with torch.no_grad():
        method.values.copy_(torch.arange(1, len(got) + 1))  # which value went where
    where = torch.cat([change.flatten() for change in dense(method, backbone("timm_vit", seed=0)).values()])
    wanted = torch.cat([p.grad.flatten() for p in candidates(merged.model).values()])
    places = where.round().long()
    torch.testing.assert_close(wanted[places > 0], got[places[places > 0] - 1], rtol=1e-4, atol=1e-5)


def test_an_adapter_holds_places_and_values_and_finds_them_again(tmp_path):
    path = tmp_path / "a.safetensors"
    model, manifest = make({"name": "fishmask", "share": 0.01})
    images = [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    model.methods[0].prepare(model, [(one, LABELS) for one in images], 0)
    save_adapter(path, model, manifest)
    tensors = load_file(path)
    assert tensors["methods.0.places"].dtype == torch.int32
    assert set(tensors) == {"methods.0.places", "methods.0.values", "head.linear.weight", "head.linear.bias"}
    loaded, _ = load_adapter(path)
    assert torch.equal(loaded(images[0]), model(images[0]))


def test_a_head_that_starts_as_zero_is_refused():
    body = backbone("timm_vit")
    (method,) = build({"name": "fishmask"}, body)
    model = Tuned(body, [method], LinearHead(body.dim, 3, init="zero")).eval()
    with pytest.raises(ValueError, match=r"^fishmask: the Fisher information .* Set head.init to trunc_normal"):
        method.prepare(model, batches(), 0)


def test_it_stands_before_what_changes_the_output_of_its_maps():
    body = backbone("timm_vit")
    first, second = build([{"name": "lora"}, {"name": "fishmask"}], body)
    first.attach(body)
    with pytest.raises(ValueError, match=r"^fishmask: LowRank changes a map already.*Put fishmask before it"):
        second.attach(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"share": 0.0}, "share is 0.0"), ({"share": 1.5}, "share is 1.5"), ({"samples": 0}, "samples is 0")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^fishmask: {message}"):
        build({"name": "fishmask", **options}, backbone("timm_vit"))
