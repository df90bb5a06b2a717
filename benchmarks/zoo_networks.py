"""The networks of zoo.py: other people's, built with random weights, and small ones of our own.

Each is the smallest of its kind that its package has, or is configured to be small, or has every
layer of its package's with an eighth of the channels (``narrow_``). Nothing is
downloaded. ``make(name="...")`` builds one, as ``--arch zoo_networks.py:make(name="...")`` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwprune.frontend.torchvision_shim import import_torchvision

IMAGE = "x:Nx3x64x64"


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        family: the section of the table.
        build: makes it.
        inputs: as --input takes them.
    """

    family: str
    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]


def call(path: str, *args: Any, **kwargs: Any) -> Any:
    """Call what a dotted path names, imported when it is needed."""
    import_torchvision()
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


# The arguments of a layer, by place and by name, that count channels, and groups of them.
_COUNTS: dict[type[nn.Module], tuple[set[int], set[str]]] = {
    nn.modules.conv._ConvNd: ({0, 1, 8}, set()),
    nn.modules.batchnorm._NormBase: ({0}, {"num_features"}),
    nn.Linear: ({0, 1}, {"in_features", "out_features"}),
}


def narrow(path: str, *args: Any, by: int = 8, **kwargs: Any) -> Any:
    """Call what a dotted path names; divide every number of channels that ``by`` divides by it."""
    import_torchvision()

    def divided(made: Any, places: set[int], names: set[str]) -> Callable[..., None]:
        def init(self: nn.Module, *given: Any, **named: Any) -> None:
            few = [n // by if i in places and n % by == 0 else n for i, n in enumerate(given)]
            named |= {key: named[key] // by for key in names & named.keys() if not named[key] % by}
            made(self, *few, **named)

        return init

    with ExitStack() as patches:
        for kind, (places, names) in _COUNTS.items():
            init = divided(kind.__init__, places, names)
            patches.enter_context(patch.object(kind, "__init__", init))
        return call(path, *args, **kwargs)


NETWORKS: dict[str, Network] = {}


def add(
    family: str, name: str, inputs: str | tuple[str, ...], path: str, *args: Any, **kwargs: Any
) -> None:
    given = (inputs,) if isinstance(inputs, str) else inputs
    NETWORKS[name] = Network(family, lambda: call(path, *args, **kwargs), given)


def make(name: str) -> nn.Module:
    """Build the network of this name."""
    return NETWORKS[name].build()


# -- timm -----------------------------------------------------------------------------------------

# Convolutions take any size.
for _name in (
    "resnet10t lcnet_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 mnasnet_small "
    "tinynet_e ghostnet_050 ghostnetv2_100 ghostnetv3_050 semnasnet_050 fbnetc_100 fbnetv3_b "
    "spnasnet_100 hardcorenas_a rexnet_100 rexnetr_100 efficientnet_lite0 efficientnet_b0 "
    "efficientnet_es mixnet_s repvgg_a0 mobileone_s0 repvit_m0_9 starnet_s050 shvit_s1 "
    "efficientvit_b0 edgenext_xx_small convnext_atto convnextv2_atto inception_next_atto "
    "mambaout_femto fastvit_t8 swiftformer_xs poolformer_s12 poolformerv2_s12 pvt_v2_b0 "
    "mobilevit_xxs mobilevitv2_050 regnetx_002 regnety_002 regnetz_b16 nf_regnet_b0 "
    "resnest14d legacy_seresnet18 skresnet18 ese_vovnet19b_slim_dw gernet_s selecsls42 "
    "darknet17 hgnetv2_b0 dla46x_c dla34 densenet121 res2net50_14w_8s dpn48b resnext26ts "
    "seresnext26ts gcresnet33ts bat_resnext26ts cspresnet50 cspdarknet53 tresnet_m nfnet_l0 "
    "eca_nfnet_l0 hrnet_w18_small rdnet_tiny csatv2 nextvit_small efficientvit_m0 "
    "convmixer_768_32 xception41 resnetv2_50 resnetblur18 ecaresnet26t seresnet18 vovnet39a "
    "lcnetv2_small mobilenetv5_300m"
).split():
    add("timm", _name, IMAGE, "timm.create_model", _name, num_classes=10)
for _name, _size in {
    "inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96, "levit_128s": 224,
    "efficientformer_l1": 224, "efficientformerv2_s0": 224, "botnet26t_256": 256,
    "halonet26t": 256, "lambda_resnet26rpt_256": 256, "eca_botnext26ts_256": 256,
    "mixer_s32_224": 224, "resmlp_12_224": 224, "gmlp_ti16_224": 224, "coat_lite_tiny": 224,
    "coat_tiny": 224, "xcit_nano_12_p16_224": 224, "cait_xxs24_224": 224, "pit_ti_224": 224,
    "visformer_tiny": 224, "sequencer2d_s": 224, "twins_svt_small": 224, "twins_pcpvt_small": 224,
    "crossvit_9_240": 240, "convit_tiny": 224, "tnt_s_patch16_224": 224, "volo_d1_224": 224,
    "davit_tiny": 224, "mvitv2_tiny": 224, "focalnet_tiny_srf": 224, "gcvit_xxtiny": 224,
    "tiny_vit_5m_224": 224, "hiera_tiny_224": 224, "nest_tiny": 224, "maxvit_pico_rw_256": 256,
    "maxvit_rmlp_pico_rw_256": 256, "maxxvit_rmlp_nano_rw_256": 256, "coatnet_pico_rw_224": 224,
    "swinv2_cr_tiny_ns_224": 224,
}.items():  # fmt: skip
    add("timm", _name, f"x:Nx3x{_size}x{_size}", "timm.create_model", _name, num_classes=10)
for _name in (
    "vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 deit_tiny_patch16_224 "
    "deit_tiny_distilled_patch16_224 eva02_tiny_patch14_224 flexivit_small "
    "vit_relpos_small_patch16_224 vit_small_patch14_reg4_dinov2 beit_base_patch16_224 "
    "swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 vit_small_patch16_dinov3"
).split():
    _size = 112 if "patch14" in _name else 128 if "swin" in _name else 96
    _fewer: dict[str, Any] = {"depths": (1, 1, 2, 1)} if "swin" in _name else {}
    if "beit" in _name:
        _fewer = {"depth": 2, "embed_dim": 192, "num_heads": 3}
    add(
        "timm", _name, f"x:Nx3x{_size}x{_size}", "timm.create_model", _name, num_classes=10,
        img_size=_size, **_fewer,
    )  # fmt: skip

# Of families whose smallest takes minutes, short and narrow ones.
for _name, _kind, _fewer in (
    ("vit", "vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 96}),
    ("levit", "levit_128s", {
        "img_size": 64, "embed_dim": (32, 48, 64), "depth": (1, 1, 1), "num_heads": (2, 3, 4),
    }),
    ("densenet", "densenet121", {"block_config": (1, 2, 2, 1), "growth_rate": 16}),
    ("nf_regnet", "nf_regnet_b0", {"depths": (1, 1, 1, 1), "channels": (16, 32, 48, 64)}),
    ("maxvit", "maxvit_pico_rw_256", {
        "img_size": 64, "embed_dim": (32, 32, 64, 64), "depths": (1, 1, 1, 1),
    }),
):  # fmt: skip
    add("timm", f"short_{_name}", IMAGE, "timm.create_model", _kind, num_classes=10, **_fewer)
_SHORT = {"num_classes": 10, "embed_dims": (16, 32, 48, 64)}
add(
    "timm", "short_tresnet", IMAGE, "timm.models.tresnet.TResNet", [1, 1, 1, 1], num_classes=10,
    width_factor=0.25,
)  # fmt: skip
add(
    "timm", "short_efficientformer", "x:Nx3x224x224",
    "timm.models.efficientformer.EfficientFormer", depths=(1, 1, 1, 2), num_vit=1, **_SHORT,
)  # fmt: skip
add(
    "timm", "short_coat", IMAGE, "timm.models.coat.CoaT", img_size=64, patch_size=4,
    serial_depths=(1, 1, 1, 1), parallel_depth=0, num_heads=8, mlp_ratios=(2, 2, 2, 2), **_SHORT,
)  # fmt: skip
add(
    "timm", "short_mixer", IMAGE, "timm.models.mlp_mixer.MlpMixer", num_classes=10, img_size=64,
    patch_size=16, num_blocks=2, embed_dim=96,
)  # fmt: skip


def short_resnest() -> nn.Module:
    """Build ResNeSt of four blocks."""
    import_torchvision()
    resnest = importlib.import_module("timm.models.resnest")
    made: nn.Module = resnest.ResNet(
        resnest.ResNestBottleneck, [1, 1, 1, 1], num_classes=10, stem_type="deep", stem_width=8,
        avg_down=True, base_width=16, channels=(16, 32, 48, 64),
        block_args={"radix": 2, "avd": True, "avd_first": False},
    )  # fmt: skip
    return made


NETWORKS["short_resnest"] = Network("timm", short_resnest, (IMAGE,))

# -- torchvision ----------------------------------------------------------------------------------

for _name in (
    "alexnet squeezenet1_1 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 "
    "efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny resnet18 resnext50_32x4d "
    "densenet121 googlenet inception_v3 swin_t swin_v2_t"
).split():
    _size = 96 if _name in ("googlenet", "inception_v3", "alexnet") else 64
    add(
        "torchvision", f"tv_{_name}", f"x:Nx3x{_size}x{_size}", f"torchvision.models.{_name}",
        num_classes=10,
        **({"init_weights": False} if _name in ("googlenet", "inception_v3") else {}),
    )  # fmt: skip
add(
    "torchvision", "tv_vit", "x:Nx3x64x64", "torchvision.models.VisionTransformer", 64, 16, 2, 4,
    64, 128, num_classes=10,
)  # fmt: skip
for _name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"):
    add(
        "segmentation", f"tv_{_name}", IMAGE, f"torchvision.models.segmentation.{_name}",
        weights=None, weights_backbone=None, num_classes=5,
    )  # fmt: skip
for _name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d"):
    _shape = "x:Nx3x14x64x64" if _name == "s3d" else "x:Nx3x8x32x32"
    add("video", f"tv_{_name}", _shape, f"torchvision.models.video.{_name}", num_classes=10)
for _name in (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large",
):  # fmt: skip
    add(
        "detection", f"tv_{_name}", "x:Nx3x128x128", f"torchvision.models.detection.{_name}",
        weights=None, weights_backbone=None, num_classes=5,
    )  # fmt: skip
add(
    "flow", "tv_raft_small", ("image1:Nx3x128x128", "image2:Nx3x128x128"),
    "torchvision.models.optical_flow.raft_small",
)  # fmt: skip

# -- every layer of large ones, with an eighth of the channels ------------------------------------


def add_narrow(family: str, name: str, inputs: str, path: str, *args: Any, **kwargs: Any) -> None:
    NETWORKS[f"narrow_{name}"] = Network(family, lambda: narrow(path, *args, **kwargs), (inputs,))


for _name in (
    "hrnet_w18_small dla34 dla46x_c repvgg_a0 efficientnet_lite0 xception41 resnext26ts "
    "hardcorenas_a selecsls42 hgnetv2_b0 vovnet39a ese_vovnet19b_slim_dw legacy_seresnet18 "
    "ecaresnet26t resnetv2_50 gernet_s darknet17 mobileone_s0 repvit_m0_9 repghostnet_050 "
    "efficientnet_es fbnetv3_b lcnetv2_small"
).split():
    add_narrow("timm", _name, IMAGE, "timm.create_model", _name, num_classes=10)
for _name in (
    "googlenet inception_v3 efficientnet_b0 regnet_y_400mf mobilenet_v2 mnasnet0_5 "
    "resnext50_32x4d shufflenet_v2_x0_5"
).split():
    add_narrow(
        "torchvision", _name, "x:Nx3x96x96" if "n_v3" in _name or "goo" in _name else IMAGE,
        f"torchvision.models.{_name}", num_classes=10,
        **({"init_weights": False} if _name in ("googlenet", "inception_v3") else {}),
    )  # fmt: skip
for _name in (
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50",
    "fcn_resnet50",
):  # fmt: skip
    add_narrow(
        "segmentation", _name, IMAGE, f"torchvision.models.segmentation.{_name}", weights=None,
        weights_backbone=None, num_classes=5,
    )  # fmt: skip
for _name in ("r3d_18", "mc3_18", "r2plus1d_18"):
    add_narrow("video", _name, "x:Nx3x8x32x32", f"torchvision.models.video.{_name}", num_classes=10)
add_narrow(
    "detection", "fasterrcnn", "x:Nx3x128x128",
    "torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn", weights=None,
    weights_backbone=None, num_classes=5,
)  # fmt: skip

# -- ultralytics ----------------------------------------------------------------------------------

for _version in ("yolov8n", "yolo11n"):
    for _task, _kind in {
        "": "Detection", "-seg": "Segmentation", "-cls": "Classification", "-pose": "Pose",
        "-obb": "OBB",
    }.items():  # fmt: skip
        add(
            "ultralytics", _version + _task, "x:Nx3x64x64",
            f"ultralytics.nn.tasks.{_kind}Model", f"{_version}{_task}.yaml", verbose=False,
        )  # fmt: skip
for _name in ("yolov3-tiny", "yolov5n", "yolov6n", "yolov9t", "yolov10n", "yolo12n", "yolo26n"):
    add(
        "ultralytics", _name, "x:Nx3x64x64", "ultralytics.nn.tasks.DetectionModel",
        f"{_name}.yaml", verbose=False,
    )  # fmt: skip

# -- transformers ---------------------------------------------------------------------------------

IDS = "input_ids:Nx16:int64"
MASKED = (IDS, "attention_mask:Nx16:int64")


def transformer(model: str, config: str, /, **given: Any) -> nn.Module:
    """Build a class of transformers from a small configuration."""
    import_torchvision()
    package = importlib.import_module("transformers")
    made: nn.Module = getattr(package, model)(getattr(package, config)(**given))
    return made


def _hf(name: str, inputs: str | tuple[str, ...], model: str, config: str, **given: Any) -> None:
    shown = (inputs,) if isinstance(inputs, str) else inputs
    NETWORKS[name] = Network(
        "transformers", lambda: transformer(model, config, **given), tuple(shown)
    )


_SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 200, "max_position_embeddings": 64,
}  # fmt: skip
_LLM = {**_SMALL, "num_key_value_heads": 2, "use_cache": False}
_VISION = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
_HEADS = {"projection_dim": 64}
for _base, _more in {
    "Bert": {}, "Roberta": {}, "Electra": {"embedding_size": 64}, "Albert": {"embedding_size": 32},
    "MobileBert": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "Nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 16}, "FNet": {},
    "ConvBert": {"embedding_size": 64}, "RoFormer": {"embedding_size": 64},
    "MPNet": {}, "SqueezeBert": {"embedding_size": 64}, "ModernBert": {"pad_token_id": 0},
}.items():  # fmt: skip
    _hf(
        f"hf_{_base.lower()}", IDS if _base == "FNet" else MASKED,
        f"{_base}ForSequenceClassification", f"{_base}Config", **{**_SMALL, **_more},
    )  # fmt: skip
_hf(
    "hf_distilbert", MASKED, "DistilBertForSequenceClassification", "DistilBertConfig",
    dim=64, n_layers=2, n_heads=4, hidden_dim=128, vocab_size=200, max_position_embeddings=64,
)  # fmt: skip
_hf(
    "hf_bert_tokens", (*MASKED, "token_type_ids:Nx16:int64"), "BertForTokenClassification",
    "BertConfig", **_SMALL,
)  # fmt: skip
_hf(
    "hf_gpt2", IDS, "GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4,
    vocab_size=200, n_positions=64, use_cache=False,
)  # fmt: skip
_hf(
    "hf_gpt2_cache", IDS, "GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4,
    vocab_size=200, n_positions=64,
)  # fmt: skip
_hf("hf_gpt_neox", IDS, "GPTNeoXForCausalLM", "GPTNeoXConfig", **{**_SMALL, "use_cache": False})
_hf(
    "hf_opt", MASKED, "OPTForCausalLM", "OPTConfig", hidden_size=64, num_hidden_layers=2,
    num_attention_heads=4, ffn_dim=128, vocab_size=200, max_position_embeddings=64,
    word_embed_proj_dim=64, use_cache=False,
)  # fmt: skip
_hf(
    "hf_bloom", IDS, "BloomForCausalLM", "BloomConfig", hidden_size=64, n_layer=2, n_head=4,
    vocab_size=200, use_cache=False,
)  # fmt: skip
for _base, _more in {
    "Llama": {}, "Mistral": {}, "Qwen2": {}, "Qwen3": {"head_dim": 16}, "Gemma": {"head_dim": 16},
    "Phi": {}, "Mixtral": {"num_local_experts": 4},
}.items():  # fmt: skip
    _hf(f"hf_{_base.lower()}", IDS, f"{_base}ForCausalLM", f"{_base}Config", **{**_LLM, **_more})
_hf("hf_llama_cache", IDS, "LlamaForCausalLM", "LlamaConfig", **{**_LLM, "use_cache": True})
_hf(
    "hf_mamba", IDS, "MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2,
    vocab_size=200, state_size=8, use_cache=False,
)  # fmt: skip
_hf(
    "hf_t5_encoder", MASKED, "T5EncoderModel", "T5Config", d_model=64, d_kv=16, d_ff=128,
    num_layers=2, num_heads=4, vocab_size=200,
)  # fmt: skip
_hf(
    "hf_t5", (IDS, "decoder_input_ids:Nx8:int64"), "T5ForConditionalGeneration", "T5Config",
    d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=200, use_cache=False,
    decoder_start_token_id=0,
)  # fmt: skip
_hf(
    "hf_bart", (IDS, "decoder_input_ids:Nx8:int64"), "BartForConditionalGeneration", "BartConfig",
    d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=200,
    max_position_embeddings=64, use_cache=False,
)  # fmt: skip
for _base in ("ViT", "DeiT"):
    _hf(
        f"hf_{_base.lower()}", "pixel_values:Nx3x64x64", f"{_base}ForImageClassification",
        f"{_base}Config", **_VISION,
    )  # fmt: skip
_hf(
    "hf_swin", "pixel_values:Nx3x64x64", "SwinForImageClassification", "SwinConfig",
    image_size=64, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4,
)  # fmt: skip
_hf(
    "hf_segformer", "pixel_values:Nx3x64x64", "SegformerForSemanticSegmentation",
    "SegformerConfig", depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64],
    decoder_hidden_size=32, num_labels=5,
)  # fmt: skip
_hf(
    "hf_mobilevit", "pixel_values:Nx3x64x64", "MobileViTForImageClassification",
    "MobileViTConfig", image_size=64, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[
        16, 16, 24, 32, 48, 64, 80,
    ],
)  # fmt: skip
_hf("hf_yolos", "pixel_values:Nx3x64x64", "YolosForObjectDetection", "YolosConfig", **{
    **_VISION, "image_size": [64, 64], "num_detection_tokens": 8,
})  # fmt: skip
_hf(
    "hf_detr", "pixel_values:Nx3x64x64", "DetrForObjectDetection", "DetrConfig",
    use_timm_backbone=True, backbone="resnet10t", use_pretrained_backbone=False, d_model=64,
    encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=128, decoder_ffn_dim=128, num_queries=10,
)  # fmt: skip
_hf(
    "hf_clip", (IDS, "pixel_values:Nx3x64x64"), "CLIPModel", "CLIPConfig",
    text_config={**_SMALL, "eos_token_id": 1}, vision_config=_VISION, **_HEADS,
)  # fmt: skip
_hf(
    "hf_whisper", ("input_features:Nx80x100", "decoder_input_ids:Nx8:int64"),
    "WhisperForConditionalGeneration", "WhisperConfig", d_model=64, encoder_layers=1,
    decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
    decoder_ffn_dim=128, vocab_size=200, max_source_positions=50, max_target_positions=32,
    use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
_hf(
    "hf_wav2vec2", "input_values:Nx4000", "Wav2Vec2ForCTC", "Wav2Vec2Config", hidden_size=64,
    num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=32,
    conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
_hf(
    "hf_ast", "input_values:Nx64x32", "ASTForAudioClassification", "ASTConfig", hidden_size=64,
    num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, max_length=64,
    num_mel_bins=32, num_labels=5,
)  # fmt: skip
_hf(
    "hf_patchtst", "past_values:Nx64x4", "PatchTSTForPrediction", "PatchTSTConfig",
    num_input_channels=4, context_length=64, prediction_length=8, patch_length=8, patch_stride=8,
    d_model=32, num_attention_heads=4, num_hidden_layers=2, ffn_dim=64,
)  # fmt: skip
_hf(
    "hf_layoutlm", (IDS, "bbox:Nx16x4:int64"), "LayoutLMForTokenClassification",
    "LayoutLMConfig", **_SMALL, max_2d_position_embeddings=64,
)  # fmt: skip
_hf("hf_dpt", "pixel_values:Nx3x64x64", "DPTForDepthEstimation", "DPTConfig", **{
    **_VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16,
})  # fmt: skip
_hf(
    "hf_convnext", "pixel_values:Nx3x64x64", "ConvNextForImageClassification", "ConvNextConfig",
    hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
)  # fmt: skip
_hf(
    "hf_efficientnet", "pixel_values:Nx3x64x64", "EfficientNetForImageClassification",
    "EfficientNetConfig", image_size=64, width_coefficient=0.25, depth_coefficient=0.3,
    hidden_dim=320,
)  # fmt: skip

# -- audio ----------------------------------------------------------------------------------------

add("audio", "ta_wav2letter", "x:Nx1x4000", "torchaudio.models.Wav2Letter", num_classes=20)
add("audio", "ta_deepspeech", "x:Nx1x20x40", "torchaudio.models.DeepSpeech", 40, 128)
add(
    "audio", "ta_convtasnet", "x:Nx1x4000", "torchaudio.models.ConvTasNet", enc_num_feats=64,
    msk_num_feats=32, msk_num_hidden_feats=64, msk_num_layers=3, msk_num_stacks=1,
)  # fmt: skip


class Conformer(nn.Module):
    """torchaudio's conformer for sequences of full length: no mask of what is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.net = call(
            "torchaudio.models.Conformer", input_dim=40, num_heads=4, ffn_dim=64, num_layers=2,
            depthwise_conv_kernel_size=15,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for layer in self.net.conformer_layers:
            x = layer(x, None)
        return x.transpose(0, 1)


NETWORKS["ta_conformer"] = Network("audio", Conformer, ("x:Nx32x40",))
add(
    "audio", "ta_hdemucs", "x:Nx2x16384", "torchaudio.models.HDemucs", ["a", "b"], channels=8,
    depth=3, nfft=512,
)  # fmt: skip
add(
    "audio", "ta_wav2vec2", "x:Nx4000", "torchaudio.models.wav2vec2_model", "group_norm",
    [(32, 10, 5), (32, 8, 4), (32, 4, 2)], False, 64, 0.0, 16, 4, 2, 4, 0.0, 128, 0.0, 0.0, False,
    0.0, 10,
)  # fmt: skip
add(
    "audio", "sb_ecapa_tdnn", "x:Nx50x40", "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN", 40,
    lin_neurons=32, channels=[64, 64, 64, 64, 192], attention_channels=32,
)  # fmt: skip
add(
    "audio", "sb_xvector", "x:Nx50x24", "speechbrain.lobes.models.Xvector.Xvector", "cpu",
    in_channels=24, lin_neurons=64, tdnn_channels=[64, 64, 64, 64, 128],
)  # fmt: skip
add(
    "audio", "as_dprnn", "x:Nx1x2000", "asteroid.models.DPRNNTasNet", 2, n_filters=16, hid_size=16,
    bn_chan=16, chunk_size=20, n_repeats=1,
)  # fmt: skip
add(
    "audio", "as_convtasnet", "x:Nx1x2000", "asteroid.models.ConvTasNet", 2, n_filters=32,
    n_blocks=2, n_repeats=1, bn_chan=16, hid_chan=32, skip_chan=16,
)  # fmt: skip
add(
    "audio", "demucs", "x:Nx2x8192", "demucs.demucs.Demucs", ["a", "b"], channels=8, depth=3,
    lstm_layers=1, dconv_mode=0, resample=False,
)  # fmt: skip
add(
    "audio", "conformer_block", "x:Nx16x64", "conformer.ConformerBlock", dim=64, dim_head=16,
    heads=4,
)  # fmt: skip
add("audio", "tcn", "x:Nx8x64", "pytorch_tcn.TCN", 8, [32, 32, 32])

# -- segmentation, images in three dimensions, images out -----------------------------------------

for _name in (
    "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer"
).split():
    _size = 128 if _name == "PAN" else 64
    add(
        "segmentation", f"smp_{_name.lower()}", f"x:Nx3x{_size}x{_size}",
        f"segmentation_models_pytorch.{_name}",
        encoder_name="resnet18" if _name in ("PAN", "UPerNet") else "mobilenet_v2",
        encoder_weights=None, classes=2,
    )  # fmt: skip
_VOLUME = "x:Nx1x32x32x32"
_NETS = "monai.networks.nets"
add(
    "volumes", "monai_unet", _VOLUME, f"{_NETS}.UNet", 3, 1, 2, (8, 16, 32), (2, 2),
    num_res_units=1,
)  # fmt: skip
add("volumes", "monai_segresnet", _VOLUME, f"{_NETS}.SegResNet", 3, 8, 1, 2, blocks_down=(1, 2, 2),
    blocks_up=(1, 1))  # fmt: skip
add("volumes", "monai_vnet", _VOLUME, f"{_NETS}.VNet")
add(
    "volumes", "monai_unetr", _VOLUME, f"{_NETS}.UNETR", 1, 2, (32, 32, 32), feature_size=8,
    hidden_size=48, mlp_dim=96, num_heads=4,
)  # fmt: skip
add("volumes", "monai_densenet121", _VOLUME, f"{_NETS}.DenseNet121", 3, 1, 2)
add(
    "images", "diffusers_unet", ("sample:Nx3x16x16", "timestep:N:int64"),
    "diffusers.UNet2DModel", sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D",
    "UpBlock2D"), norm_num_groups=8, attention_head_dim=8,
)  # fmt: skip
add(
    "images", "diffusers_vae", "sample:Nx3x32x32", "diffusers.AutoencoderKL",
    block_out_channels=(16, 32), norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)  # fmt: skip
add("images", "open_clip_rn", ("image:Nx3x64x64", "text:Nx16:int64"), "open_clip.CLIP", 64, {
    "image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None,
}, {"context_length": 16, "vocab_size": 200, "width": 64, "heads": 4, "layers": 2})  # fmt: skip
for _name in (
    "nin_cifar10 wrn16_10_cifar10 diaresnet20_cifar10 pyramidnet110_a48_cifar10 "
    "xdensenet40_2_k24_bc_cifar10 shakeshakeresnet20_2x16d_cifar10 sepreresnet20_cifar10 "
    "rir_cifar10"
).split():
    add("pytorchcv", f"pcv_{_name}", "x:Nx3x32x32", "pytorchcv.model_provider.get_model", _name)
for _name in (
    "igcv3_wd4 menet108_8x1_g3 fdmobilenet_wd4 squeezenext_v1 ibnresnet50 airnet50_1x64d_r16 "
    "hardnet39ds proxylessnas_cpu darts dicenet_wd5 peleenet condensenet74_c4_g4 "
    "lwopenpose2d_mobilenet_cmupan_coco simplepose_mobile_mobilenet_w1_coco sinet_cityscapes "
    "bisenet_resnet18_celebamaskhq"
).split():
    add("pytorchcv", f"pcv_{_name}", "x:Nx3x64x64", "pytorchcv.model_provider.get_model", _name)
add(
    "images", "efficientnet_pytorch", IMAGE, "efficientnet_pytorch.EfficientNet.from_name",
    "efficientnet-b0", num_classes=10,
)  # fmt: skip
add(
    "images", "cvt", IMAGE, "vit_pytorch.cvt.CvT", num_classes=10, s1_emb_dim=16, s2_emb_dim=32,
    s2_heads=2, s2_depth=1, s3_emb_dim=48, s3_heads=3, s3_depth=1,
)  # fmt: skip
add(
    "images", "cct", IMAGE, "vit_pytorch.cct.CCT", img_size=(64, 64), embedding_dim=64,
    num_layers=2, num_heads=4, mlp_ratio=2, num_classes=10, n_conv_layers=1,
)  # fmt: skip

# -- recommenders ---------------------------------------------------------------------------------


def recommender(name: str) -> nn.Module:
    """Build a network of deepctr_torch over four categories and two numbers."""
    inputs = importlib.import_module("deepctr_torch.inputs")
    columns = [inputs.SparseFeat(f"c{i}", 50, embedding_dim=8) for i in range(4)]
    columns += [inputs.DenseFeat(f"d{i}", 1) for i in range(2)]
    models = importlib.import_module("deepctr_torch.models")
    given = (columns,) if name == "PNN" else (columns, columns)
    made: nn.Module = getattr(models, name)(*given)
    return made


for _name in ("WDL", "DeepFM", "DCN", "PNN"):
    NETWORKS[f"ctr_{_name.lower()}"] = Network(
        "recommenders", lambda name=_name: recommender(name), ("x:Nx6",)
    )


# -- our own: what people write themselves --------------------------------------------------------


class Ncf(nn.Module):
    """Neural collaborative filtering: users and items, multiplied and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(100, 16) for _ in range(4))
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        product = self.tables[0](user) * self.tables[1](item)
        deep = self.layers(torch.cat([self.tables[2](user), self.tables[3](item)], 1))
        return torch.sigmoid(self.head(torch.cat([product, deep], 1))).squeeze(-1)


class Dlrm(nn.Module):
    """Bags of categories and dense features, with the products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
        self.top = nn.Sequential(nn.Linear(16 + 6, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = torch.stack([x, *(bag(ids[:, i]) for i, bag in enumerate(self.bags))], 1)
        pairs = torch.bmm(rows, rows.transpose(1, 2))
        i, j = torch.tril_indices(4, 4, offset=-1)
        return self.top(torch.cat([x, pairs[:, i, j]], 1))


class Recurrent(nn.Module):
    """Frames in, classes out, by a recurrent layer."""

    def __init__(self, kind: str, **given: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(40, 64, batch_first=True, **given)
        size = given.get("proj_size", 64) * (2 if given.get("bidirectional") else 1)
        self.head = nn.Linear(size, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Cells(nn.Module):
    """A GRUCell and an LSTMCell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.head = nn.GRUCell(16, 32), nn.LSTMCell(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 32)
        state = (h, h)
        for step in range(x.shape[1]):
            h = self.gru(x[:, step], h)
            state = self.lstm(h, state)
        return self.head(state[0])


class CharRnn(nn.Module):
    """Letters in, letters out, with the state as input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(60, 32), nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, 60)

    def forward(self, letters: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, state = self.rnn(self.table(letters), state.transpose(0, 1).contiguous())
        return self.head(x), state.transpose(0, 1)


class Seq2Seq(nn.Module):
    """Encoder and decoder with additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(60, 32), nn.Embedding(60, 32)
        self.encoder, self.decoder = (nn.LSTM(32, 48, batch_first=True) for _ in range(2))
        self.keys, self.queries, self.score = (
            nn.Linear(48, 32), nn.Linear(48, 32), nn.Linear(32, 1, bias=False),
        )  # fmt: skip
        self.head = nn.Linear(96, 60)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        x, _ = self.decoder(self.target(target), state)
        energy = torch.tanh(self.queries(x)[:, :, None] + self.keys(memory)[:, None])
        weights = self.score(energy).squeeze(-1).softmax(-1)
        return self.head(torch.cat([x, weights @ memory], -1))


class ConvLstm(nn.Module):
    """A convolutional LSTM over five frames."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + 16, 64, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 16, *x.shape[3:])
        for step in range(x.shape[1]):
            i, f, o, g = self.gates(torch.cat([x[:, step], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class KeywordCnn(nn.Module):
    """Depthwise separable convolutions over a spectrogram that the network makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(128))
        angle = torch.arange(65)[:, None] * torch.arange(128) * (2 * torch.pi / 128)
        self.register_buffer("basis", torch.cat([angle.cos(), angle.sin()])[:, None])
        self.net = nn.Sequential(
            nn.Conv1d(65, 32, 1), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 32, 9, padding=4, groups=32), nn.Conv1d(32, 48, 1),
            nn.BatchNorm1d(48, affine=False), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
            nn.Linear(48, 12),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = F.conv1d(x[:, None], self.basis * self.window, stride=64).chunk(2, 1)
        return self.net(torch.log(real.square() + imaginary.square() + 1e-3))


class Vae(nn.Module):
    """A variational autoencoder, which in eval mode takes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(196, 64), nn.Linear(8, 196)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, spread = F.silu(self.encoder(x))[:, :16].chunk(2, 1)
        sample = mean + torch.randn_like(mean) * spread.exp() if self.training else mean
        return {"reconstruction": torch.sigmoid(self.decoder(sample)), "mean": mean}


class Experts(nn.Module):
    """A soft mixture of experts held in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 4)
        self.first = nn.Parameter(torch.randn(4, 32, 64) / 8)
        self.second = nn.Parameter(torch.randn(4, 64, 10) / 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("bi,eio->beo", x, self.first))
        each = torch.einsum("beo,eoc->bec", hidden, self.second)
        return (self.gate(x).softmax(-1)[..., None] * each).sum(1)


class PointNet(nn.Module):
    """Points in, classes out, with a learned transformation."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.matrix = nn.Linear(32, 9)
        self.net = nn.Sequential(nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.turn(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        return F.log_softmax(self.head(self.net(matrix @ x).amax(2)), -1)


class DenseGcn(nn.Module):
    """A graph convolution over a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1, keepdim=True).clamp(min=1)
        return self.second(adjacency @ torch.relu(self.first(adjacency @ x / degree)) / degree)


class Generator(nn.Module):
    """DCGAN's generator with spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(
            norm(nn.ConvTranspose2d(32, 64, 4)), nn.BatchNorm2d(64), nn.ReLU(),
            norm(nn.ConvTranspose2d(64, 32, 4, 2, 1)), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class Style(nn.Module):
    """Fast style transfer: reflection padding, instance norm, nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReflectionPad2d(4), nn.Conv2d(3, 16, 9), nn.InstanceNorm2d(16, affine=True),
            nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.InstanceNorm2d(32), nn.Mish(),
            nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(32, 3, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SuperResolution(nn.Module):
    """ESPCN with a bicubic skip, weight norm and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.net = nn.Sequential(
            norm(nn.Conv2d(3, 32, 5, padding=2)), nn.PReLU(32), norm(nn.Conv2d(32, 12, 3, 1, 1)),
            nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        wide = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        return self.net(x) + wide


class TwoTower(nn.Module):
    """Two towers and a learned temperature, which is an output of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 32), nn.Linear(24, 32)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        left, right = F.normalize(self.left(a), dim=-1), F.normalize(self.right(b), dim=-1)
        return self.scale.exp() * (left * right).sum(-1), self.scale.exp()


class ActorCritic(nn.Module):
    """A policy and a value over observations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(64), nn.Tanh(), nn.LazyLinear(64), nn.Tanh())
        self.policy, self.value = nn.LazyLinear(4), nn.LazyLinear(1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, None]:
        x = self.body(observation)
        return torch.log_softmax(self.policy(x), -1), self.value(x).squeeze(-1), None


class Seq(nn.Module):
    """torch's own encoder, with a padding mask from the letters."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.table = nn.Embedding(50, 32, padding_idx=0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, letters: Tensor) -> Tensor:
        empty = letters == 0
        x = self.encoder(self.table(letters), src_key_padding_mask=empty)
        kept = (~empty).unsqueeze(-1).float()
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))


class Siren(nn.Module):
    """Sines of coordinates, after Fourier features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 16))
        self.first, self.second, self.head = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        angle = x @ self.frequencies
        x = torch.cat([angle.sin(), angle.cos()], -1)
        return self.head(torch.sin(30 * self.second(torch.sin(30 * self.first(x)))))


class Vgg16(nn.Module):
    """VGG16 for CIFAR, a quarter as wide."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for size in (16, 16, 0, 32, 32, 0, 64, 64, 64, 0, 128, 128, 128, 0, 128, 128, 128, 0):
            if size:
                layers += [nn.Conv2d(last, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
                last = size
            else:
                layers.append(nn.MaxPool2d(2))
        self.features, self.head = nn.Sequential(*layers), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def _own(name: str, family: str, inputs: str | tuple[str, ...], build: Callable[..., Any]) -> None:
    NETWORKS[name] = Network(family, build, (inputs,) if isinstance(inputs, str) else inputs)


_own("ncf", "recommenders", ("user:N:int64", "item:N:int64"), Ncf)
_own("dlrm", "recommenders", ("dense:Nx8", "ids:Nx3x4:int64"), Dlrm)
_own("two_tower", "recommenders", ("a:Nx16", "b:Nx24"), TwoTower)
for _kind in ("LSTM", "GRU", "RNN"):
    _own(_kind.lower(), "recurrent", "x:Nx20x40", lambda kind=_kind: Recurrent(kind))
_own(
    "bilstm", "recurrent", "x:Nx20x40", lambda: Recurrent("LSTM", num_layers=2, bidirectional=True)
)
_own("lstm_projection", "recurrent", "x:Nx20x40", lambda: Recurrent("LSTM", proj_size=24))
_own("cells", "recurrent", "x:Nx6x16", Cells)
_own("char_rnn", "recurrent", ("letters:Nx10:int64", "state:Nx1x64"), CharRnn)
_own("seq2seq", "recurrent", ("source:Nx10:int64", "target:Nx8:int64"), Seq2Seq)
_own("conv_lstm", "recurrent", "x:Nx5x3x16x16", ConvLstm)
_own("keyword_cnn", "audio", "x:Nx2048", KeywordCnn)
_own("vae", "images", "x:Nx196", Vae)
_own("generator", "images", "z:Nx32", Generator)
_own("style", "images", "x:Nx3x32x32", Style)
_own("super_resolution", "images", "x:Nx3x16x16", SuperResolution)
_own("vgg16_cifar", "images", "x:Nx3x32x32", Vgg16)
_own("siren", "others", "x:Nx2", Siren)
_own("experts", "others", "x:Nx32", Experts)
_own("pointnet", "others", "x:Nx3x64", PointNet)
_own("dense_gcn", "others", ("x:Nx12x16", "adjacency:Nx12x12"), DenseGcn)
_own("actor_critic", "others", "observation:Nx8", ActorCritic)
_own("encoder", "others", "letters:Nx12:int64", Seq)
