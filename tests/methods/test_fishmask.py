"""FishMask: the entries with the largest sum of squared gradients learn, and no others."""

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.adapters import make
from tests.zoo import backbone, image, shake, tuned
from vpeft.checkpoint import load_adapter, save_adapter
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.sampled import Sampled, entries_of_product
from vpeft.tuned import Tuned

LABELS = torch.tensor([0, 2])


def batches():
    return [(image(seed), LABELS) for seed in range(3)]


def candidates(model):
    """Every weight and bias of the tiny ViT but those of its embeddings and class token, by name."""
    embeddings = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    return {name: p for name, p in model.named_parameters() if name not in embeddings}


def twice(module, args, y):
    return 2 * y


class Products(TorchDispatchMode):
    """Shapes of all matrix products that are made."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.made.add(tuple(result.shape))
        return result


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


def places_among(total, count, seed=0):
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


@pytest.mark.parametrize("rows", [1, 34, 600, 1024])  # of which 512 are taken at once
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_entries_of_a_product_are_those_of_the_whole(rows, dtype, index):
    torch.manual_seed(0)
    dy, x = torch.randn(rows, 7, dtype=dtype), torch.randn(rows, 5, dtype=dtype)
    places = places_among(35, 12)
    found = entries_of_product(dy, x, places.to(index))
    assert found.dtype == dtype
    torch.testing.assert_close(found, (dy.T @ x).flatten()[places])


def test_entries_of_a_product_in_half_precision_are_summed_in_single():
    torch.manual_seed(0)
    dy, x, places = torch.randn(600, 7).bfloat16(), torch.randn(600, 5).bfloat16(), places_among(35, 12)
    found = entries_of_product(dy, x, places)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (dy.float().T @ x.float()).flatten()[places])


def test_a_tracer_is_told_the_shape_of_the_entries():
    dy, x, places = torch.randn(3, 7), torch.randn(3, 5), places_among(35, 12)
    torch.library.opcheck(entries_of_product, (dy, x, places))


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (2, 3, 4, 5)])
def test_y_is_passed_on_with_its_gradient(shape):
    torch.manual_seed(0)
    x, w, places = torch.randn(shape, requires_grad=True), torch.randn(7, 5), places_among(35, 12)
    values = torch.zeros(12, requires_grad=True)
    y = x @ w.T
    out = Sampled.apply(y, values, x.detach(), places)
    assert torch.equal(out, y)
    dy = torch.randn_like(y)
    dx, found = torch.autograd.grad(out, (x, values), dy)
    torch.testing.assert_close(dx, dy @ w)
    torch.testing.assert_close(found, (dy.flatten(0, -2).T @ x.detach().flatten(0, -2)).flatten()[places])


def test_the_gradient_is_that_of_the_map_and_not_of_what_others_make_of_it():
    """Stochastic depth may close a branch at a linear map before FishMask attaches."""
    body, plain = backbone("timm_vit"), backbone("timm_vit")
    for one in (body, plain):
        one.blocks[0].affines["fc2"].owner.register_forward_hook(twice)
    (method,) = build({"name": "fishmask", "share": 0.02}, body)
    method.attach(body)
    for one in (body, plain):
        one(image()).square().sum().backward()
    tensors = [tensor for affine, _ in method._changes(plain) for tensor in affine.tensors().values()]
    wanted = torch.cat([tensor.grad.flatten() for tensor in tensors])
    torch.testing.assert_close(method.values.grad, wanted[method.places], rtol=1e-4, atol=1e-5)


def test_no_product_of_the_backward_has_the_size_of_a_weight():
    """Shapes of the tiny ViT's weights are none of its activations'."""
    sizes = {}
    for name in ("fishmask", "full"):
        model = shake(tuned("timm_vit", name))
        loss = model(image()).square().sum()
        with Products() as products:
            loss.backward()
        weights = {tuple(p.shape) for block in model.backbone.model.blocks for p in block.parameters() if p.ndim == 2}
        sizes[name] = weights & {shape for made in products.made for shape in (made, made[::-1])}
    assert not sizes["fishmask"]
    assert len(sizes["full"]) == 4, "full fine-tuning does form them, or this test sees nothing"


def test_bf16_gradients_are_near_those_of_single_precision():
    gradients = []
    for bf16 in (False, True):
        model = shake(tuned("timm_vit", "fishmask"))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(image()).square().mean()
        loss.backward()
        gradients.append(model.methods[0].values.grad)
    single, half = gradients
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(single, half, dim=0) > 0.99


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
