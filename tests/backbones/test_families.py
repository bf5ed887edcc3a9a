"""Every family, seen through the seams, is still the vendor's model."""

import copy

import pytest
import torch

from tests.zoo import MODELS, PLAIN, backbone, image
from vpeft.backbones import create, wrap


def vendor_features(body, images):
    model, kind = body.model, body.name
    if kind.startswith("timm"):
        return model(images)
    if kind == "open_clip":
        model.output_tokens, projection, model.proj = False, model.proj, None
        features = model(images)
        model.proj = projection
        return features
    out = model(images)
    return out.last_hidden_state[:, 0] if out.pooler_output is None else out.pooler_output


@pytest.mark.parametrize("name", [n for n in MODELS if n != "hf_clip"])
def test_the_loop_in_the_open_equals_the_vendors_forward(name):
    body = backbone(name)
    with torch.no_grad():
        torch.testing.assert_close(body(image()), vendor_features(body, image()), atol=1e-6, rtol=1e-5)


def test_clip_features_are_the_normalised_class_token():
    body = backbone("hf_clip")
    with torch.no_grad():
        torch.testing.assert_close(body(image()), body.model(image()).pooler_output, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_block_says_of_its_tokens_is_true(name):
    body = backbone(name)
    x = body.embed(image())
    for index, block in enumerate(body.blocks):
        x = body.between(index, x)
        height, width = block.grid
        expected = (height, width, block.dim) if block.windowed else (block.prefix + height * width, block.dim)
        assert x.shape[1:] == expected
        x = block(x)
    assert body.pool(body.finish(x)).shape == (2, body.dim)


@pytest.mark.parametrize("name", MODELS)
def test_a_branch_sees_the_stream_its_norm_and_what_is_added(name):
    body = backbone(name)
    seen = []
    block = body.blocks[-1]
    block.attn.edit(lambda x, h, y: seen.append((x, h, y)) or y)
    block.mlp.edit(lambda x, h, y: seen.append((x, h, y)) or y)
    out = []
    block.after(lambda x: out.append(x) or x)
    with torch.no_grad():
        body(image())
        (x, h, y), (x2, h2, y2) = seen
        torch.testing.assert_close(block.attn.opens(x), h)
        torch.testing.assert_close((x + y).reshape(x2.shape), x2)
        torch.testing.assert_close(block.mlp.opens(x2), h2)
        torch.testing.assert_close((x2 + y2).reshape(out[0].shape), out[0])


@pytest.mark.parametrize("name", PLAIN)
def test_attend_over_its_own_tokens_is_the_blocks_attention(name):
    body = backbone(name)
    block = body.blocks[0]
    seen = []
    block.attn.edit(lambda x, h, y: seen.append((h, y)) or y)
    scales = ("ls1.gamma", "layer_scale1.lambda1", "gamma_1")
    scale = next((p for n, p in block.module.named_parameters() if n in scales), 1.0)
    with torch.no_grad():
        body(image())
        h, y = seen[0]
        # A query carries no position, so with rotary embeddings only the prefix can be compared.
        queries = h[:, : block.prefix] if name == "timm_dinov3" else h
        attended = scale * block.attend(queries, h)
    torch.testing.assert_close(attended, y[:, : queries.shape[1]], atol=1e-5, rtol=1e-4)


def test_windowed_attention_refuses_queries():
    with pytest.raises(ValueError, match="within windows"):
        backbone("timm_swin").blocks[0].attend(torch.zeros(1, 1, 32), torch.zeros(1, 4, 32))


@pytest.mark.parametrize("name", MODELS)
def test_roles_name_the_same_maps_under_every_library(name):
    block = backbone(name).blocks[0]
    for role in ("q", "k", "v", "qkv", "proj", "fc1", "fc2", "norm1", "norm2"):
        rows = sum(part.stop - part.start for _, part in block.find(role))
        wanted = {"qkv": 3 * block.dim, "fc1": block.find("fc1")[0][0].shape[0]}.get(role, block.dim)
        assert rows == wanted, role
    with pytest.raises(ValueError, match=r"no affine map 'query'. It has fc1, fc2, k"):
        block.find("query")


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="built for images of 64x64 pixels and was given 64x32"):
        backbone("timm_vit")(torch.zeros(1, 3, 64, 32))


@pytest.mark.parametrize("size", [32, [32, 48]])
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_position_embeddings_follow_the_image_size(name, size):
    if "patch14" in name:
        size = 28 if size == 32 else [28, 42]
    body = create(name, "none", image_size=size)
    height, width = body.image_size
    with torch.no_grad():
        assert body(torch.zeros(1, 3, height, width)).shape == (1, body.dim)
    assert body.grid == (height // body.patch[0], width // body.patch[1])


def test_swin_keeps_its_window_when_the_image_size_changes():
    body = create("swin_tiny_patch4_window7_224", "none", image_size=112)
    assert {tuple(b.module.window_size) for b in body.blocks[:10]} == {(7, 7)}
    with torch.no_grad():
        assert body(torch.zeros(1, 3, 112, 112)).shape == (1, 768)


def test_random_weights_follow_the_seed_and_say_so():
    one, same, other = (create("test_vit", "none", seed=s) for s in (0, 0, 1))
    assert one.weights.source == "random"
    assert one.weights.origin == "seed 0"
    assert one.weights == same.weights
    assert one.weights.sha256 != other.weights.sha256


def test_the_hash_of_the_weights_does_not_depend_on_the_image_size():
    assert create("test_vit", "none").weights == create("test_vit", "none", image_size=96).weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_22", "Did you mean vit_base_patch16_224"),
        ("vit_base_patch16_224.foo", "has no weights 'foo'. It has .*orig_in21k"),
        ("open_clip:ViT-B-61", "open_clip has no model 'ViT-B-61'. Did you mean"),
        ("open_clip:ViT-B-16", "which weights"),
        ("open_clip:ViT-B-16/opena", "no weights 'opena'. It has openai"),
        ("keras:vit", "known are timm"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, message):
    with pytest.raises(ValueError, match=message):
        create(name)


def test_a_model_without_such_blocks_is_refused():
    with pytest.raises(TypeError, match="ResNet is not a supported backbone"):
        create("resnet18", "none")
    with pytest.raises(TypeError, match="ResPostBlock, which is not one of the pre-norm blocks"):
        create("vit_base_patch16_rpn_224", "none")


def test_a_size_that_is_no_multiple_of_the_patch_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest are 96 and 112"):
        create("test_vit", "none", image_size=100)


def test_hub_weights_out_of_reach_name_the_ways_out():
    with pytest.raises(RuntimeError, match="pretrained: PATH"):
        create("vit_base_patch16_224.orig_in21k")


def test_open_clip_towers_resample_and_use_the_activation_of_their_weights():
    body = create("open_clip:ViT-B-32/openai", "none", image_size=64)
    with torch.no_grad():
        assert body(torch.zeros(1, 3, 64, 64)).shape == (1, 768)
    assert type(body.model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_a_transformers_folder_is_read_with_its_own_preprocessing(tmp_path):
    import json

    vendor = backbone("hf_clip").model
    vendor.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2})
    )
    body = create(f"hf:{tmp_path}")
    assert (body.mean, body.std, body.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    with torch.no_grad():
        torch.testing.assert_close(body(image()), vendor(image()).pooler_output)


@pytest.mark.parametrize("name", ["hf_vit", "hf_dinov2", "hf_registers", "hf_clip", "hf_siglip"])
def test_transformers_towers_resample_like_timm(name, tmp_path):
    backbone(name).model.save_pretrained(tmp_path)
    body = create(f"hf:{tmp_path}", image_size=96)
    assert body.grid == (6, 6)
    with torch.no_grad():
        assert body(torch.zeros(1, 3, 96, 96)).shape == (1, 32)


def test_the_same_clip_weights_give_the_same_features_in_open_clip_and_transformers():
    theirs, ours = backbone("open_clip"), backbone("hf_clip")
    source = theirs.model.state_dict()
    width = 32
    target = {
        "embeddings.class_embedding": source["class_embedding"],
        "embeddings.patch_embedding.weight": source["conv1.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
        "pre_layrnorm.weight": source["ln_pre.weight"],
        "pre_layrnorm.bias": source["ln_pre.bias"],
        "post_layernorm.weight": source["ln_post.weight"],
        "post_layernorm.bias": source["ln_post.bias"],
    }
    for i in range(2):
        a, b = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            qkv = source[f"{a}.attn.in_proj_{kind}"]
            for j, role in enumerate("qkv"):
                target[f"{b}.self_attn.{role}_proj.{kind}"] = qkv[j * width : (j + 1) * width]
            target[f"{b}.self_attn.out_proj.{kind}"] = source[f"{a}.attn.out_proj.{kind}"]
            target[f"{b}.layer_norm1.{kind}"] = source[f"{a}.ln_1.{kind}"]
            target[f"{b}.layer_norm2.{kind}"] = source[f"{a}.ln_2.{kind}"]
            target[f"{b}.mlp.fc1.{kind}"] = source[f"{a}.mlp.c_fc.{kind}"]
            target[f"{b}.mlp.fc2.{kind}"] = source[f"{a}.mlp.c_proj.{kind}"]
    ours.model.load_state_dict(target)
    for layer in ours.model.encoder.layers:
        layer.mlp.activation_fn = copy.deepcopy(theirs.model.transformer.resblocks[0].mlp.gelu)
    with torch.no_grad():
        torch.testing.assert_close(ours(image()), theirs(image()), atol=1e-5, rtol=1e-5)


def test_a_model_of_the_callers_own_can_be_wrapped():
    model = MODELS["timm_vit"]()
    body = wrap(model)
    assert body.name == "VisionTransformer"
    assert body.weights.source == "given"
    with pytest.raises(TypeError, match="not a model of timm, open_clip or transformers"):
        wrap(torch.nn.Linear(2, 2))


def test_a_transformers_tower_reads_a_file_under_published_names(tmp_path):
    from safetensors.torch import save_file

    vendor = backbone("hf_dinov2").model
    vendor.save_pretrained(tmp_path / "model")
    published = (tmp_path / "model" / "model.safetensors").rename(tmp_path / "weights.safetensors")
    body = create(f"hf:{tmp_path / 'model'}", str(published))
    with torch.no_grad():
        torch.testing.assert_close(body(image()), vendor(image()).pooler_output)
    assert (body.weights.source, body.weights.origin) == ("file", "weights.safetensors")
    save_file({"layernorm.weight": torch.zeros(32)}, published)
    with pytest.raises(ValueError, match=r"does not fit this backbone: .* missing"):
        create(f"hf:{tmp_path / 'model'}", str(published))


def test_a_google_checkpoint_of_another_shape_is_refused(tmp_path):
    import numpy as np

    path = tmp_path / "S_32.npz"
    blocks = {f"Transformer/encoderblock_{i}/LayerNorm_0/scale": np.zeros(64) for i in range(2)}
    np.savez(path, **blocks, **{"embedding/kernel": np.zeros((32, 32, 3, 64), "float32")})
    with pytest.raises(ValueError, match="2 blocks, width 64 and patches of 32 pixels; this backbone has 6 blocks"):
        create("test_vit", str(path))


def test_auto_takes_a_file_that_lies_under_weights_of_the_cache(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    wanted = create("test_vit", "none", seed=3)
    (tmp_path / "weights").mkdir()
    save_file(wanted.model.state_dict(), tmp_path / "weights" / "test_vit.safetensors")
    found = create("test_vit")
    assert (found.weights.source, found.weights.origin) == ("file", "test_vit.safetensors")
    assert found.weights.sha256 == wanted.weights.sha256


def test_a_file_of_another_patch_size_is_refused_and_not_resampled(tmp_path):
    from safetensors.torch import save_file

    state = create("test_vit", "none").model.state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(64, 3, 32, 32)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="patches of 32 pixels; this backbone's are 16"):
        create("test_vit", str(tmp_path / "other.safetensors"))


def test_the_hash_of_a_file_of_another_image_size_is_that_of_the_file(tmp_path):
    from safetensors.torch import save_file

    from vpeft.backbones.weights import content_hash

    state = create("test_vit", "none", image_size=96).model.state_dict()
    save_file(state, tmp_path / "small.safetensors")
    body = create("test_vit", str(tmp_path / "small.safetensors"))
    assert body.grid == (10, 10)
    assert body.weights.sha256 == content_hash(state)
