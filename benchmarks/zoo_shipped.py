# ruff: noqa: E501 - one network a line
"""The networks that people ship, beyond timm and torchvision: builders of small ones of each kind, random weights.

`NETWORKS` maps a name to a function that gives the network and its example inputs (a tensor, a tuple, or a dict).
Ultralytics (AGPL) is only imported here, from the folder of `benchmarks/zoo.py --site`; nothing of edgeprune depends on
it. Encoders of `transformers` have two or three layers and small widths: their graphs are the same as those of the full ones.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable
from typing import Any

Built = tuple[Any, Any]
SIDE = 128


def _yolo(name: str, side: int = SIDE) -> Callable[[], Built]:
    def build() -> Built:
        import torch

        os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp")
        os.environ["YOLO_OFFLINE"] = "1"
        tasks = importlib.import_module("ultralytics.nn.tasks")
        kinds = {
            "-seg": "SegmentationModel",
            "-pose": "PoseModel",
            "-obb": "OBBModel",
            "-cls": "ClassificationModel",
            "rtdetr": "RTDETRDetectionModel",
        }
        kind = next((k for mark, k in kinds.items() if mark in name), "DetectionModel")
        return getattr(tasks, kind)(f"{name}.yaml", verbose=False), torch.rand(1, 3, side, side)

    return build


_TEXT = {"input_ids": ("ids", (1, 16)), "attention_mask": ("ones", (1, 16))}
_SMALL = {
    "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
    "max_position_embeddings": 64,
}  # fmt: skip
_PIXELS = {"pixel_values": ("image", (1, 3, 64, 64))}
_VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "image_size": 64}
_WAVE = {"input_values": ("image", (1, 8000))}
_SPEECH = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


def _hf(config: str, model: str, inputs: dict[str, tuple[str, tuple[int, ...]]], **values: Any) -> Callable[[], Built]:
    def build() -> Built:
        import torch

        os.environ["HF_HUB_OFFLINE"] = "1"
        library = importlib.import_module("transformers")
        made = getattr(library, model)(getattr(library, config)(**values))
        example = {}
        for name, (kind, shape) in inputs.items():
            if kind == "ids":
                example[name] = torch.randint(3, 90, shape)
            elif kind == "boxes":
                example[name] = torch.tensor([1, 2, 30, 40]).expand(*shape, 4).contiguous()
            else:
                example[name] = torch.ones(shape, dtype=torch.int64) if kind == "ones" else torch.rand(shape)
        return made, example

    return build


def _smp(decoder: str, encoder: str, **values: Any) -> Callable[[], Built]:
    def build() -> Built:
        import torch

        library = importlib.import_module("segmentation_models_pytorch")
        made = getattr(library, decoder)(encoder_name=encoder, encoder_weights=None, classes=3, **values)
        side = 224 if decoder == "DPT" else SIDE
        return made, torch.rand(1, 3, side, side)

    return build


def _monai(name: str, shape: tuple[int, ...], **values: Any) -> Callable[[], Built]:
    def build() -> Built:
        import torch

        library = importlib.import_module("monai.networks.nets")
        return getattr(library, name)(**values), torch.rand(shape)

    return build


def _own(name: str) -> Callable[[], Built]:
    def build() -> Built:
        return getattr(importlib.import_module("zoo_nets"), name)()  # type: ignore[no-any-return]

    return build


_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
NETWORKS: dict[str, Callable[[], Built]] = {
    **{
        f"ultralytics/{name}": _yolo(name)
        for name in (
            "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb", "yolov8n-cls",
            "yolov8n-ghost", "yolov8n-p2", "yolov9t", "yolov10n", "yolo11n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb",
            "yolo11n-cls", "yolo12n", "yolo12n-seg", "yolo26n", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb",
            "rtdetr-resnet50", "yolov8-rtdetr",
        )
    },
    "text/bert": _hf("BertConfig", "BertModel", _TEXT, **_SMALL),
    "text/bert-classifier": _hf("BertConfig", "BertForSequenceClassification", _TEXT, **_SMALL),
    "text/distilbert": _hf("DistilBertConfig", "DistilBertModel", _TEXT, vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=256),
    "text/roberta": _hf("RobertaConfig", "RobertaModel", _TEXT, **_SMALL),
    "text/albert": _hf("AlbertConfig", "AlbertModel", _TEXT, **_SMALL, embedding_size=32),
    "text/electra": _hf("ElectraConfig", "ElectraModel", _TEXT, **_SMALL, embedding_size=32),
    "text/deberta": _hf("DebertaConfig", "DebertaModel", _TEXT, **_SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "text/deberta-v2": _hf("DebertaV2Config", "DebertaV2Model", _TEXT, **_SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm"),
    "text/mpnet": _hf("MPNetConfig", "MPNetModel", _TEXT, **_SMALL),
    "text/mobilebert": _hf("MobileBertConfig", "MobileBertModel", _TEXT, **_SMALL, embedding_size=32, true_hidden_size=32, intra_bottleneck_size=32),
    "text/squeezebert": _hf("SqueezeBertConfig", "SqueezeBertModel", _TEXT, **_SMALL, embedding_size=64),
    "text/convbert": _hf("ConvBertConfig", "ConvBertModel", _TEXT, **_SMALL, embedding_size=64),
    "text/ernie": _hf("ErnieConfig", "ErnieModel", _TEXT, **_SMALL),
    "text/modernbert": _hf("ModernBertConfig", "ModernBertModel", _TEXT, **_SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "text/fnet": _hf("FNetConfig", "FNetModel", {"input_ids": ("ids", (1, 16))}, vocab_size=100, hidden_size=64, num_hidden_layers=2, intermediate_size=256, max_position_embeddings=64),
    "text/layoutlm": _hf("LayoutLMConfig", "LayoutLMModel", {**_TEXT, "bbox": ("boxes", (1, 16))}, **_SMALL, max_2d_position_embeddings=128),
    "text/roformer": _hf("RoFormerConfig", "RoFormerModel", _TEXT, **_SMALL, embedding_size=64),
    "text/t5-encoder": _hf("T5Config", "T5EncoderModel", _TEXT, vocab_size=100, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=4),
    "text/llama": _hf("LlamaConfig", "LlamaForCausalLM", _TEXT, **_SMALL, num_key_value_heads=2, use_cache=False),
    "text/gpt2": _hf("GPT2Config", "GPT2LMHeadModel", _TEXT, vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False),
    "vision/vit": _hf("ViTConfig", "ViTForImageClassification", _PIXELS, **_VIT),
    "vision/deit": _hf("DeiTConfig", "DeiTModel", _PIXELS, **_VIT),
    "vision/beit": _hf("BeitConfig", "BeitModel", _PIXELS, **_VIT),
    "vision/dinov2": _hf("Dinov2Config", "Dinov2Model", _PIXELS, **_VIT, patch_size=16),
    "vision/clip": _hf("CLIPVisionConfig", "CLIPVisionModel", _PIXELS, **_VIT, patch_size=16),
    "vision/siglip": _hf("SiglipVisionConfig", "SiglipVisionModel", _PIXELS, **_VIT, patch_size=16),
    "vision/swin": _hf("SwinConfig", "SwinModel", _PIXELS, image_size=64, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "vision/swinv2": _hf("Swinv2Config", "Swinv2Model", _PIXELS, image_size=64, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "vision/convnext": _hf("ConvNextConfig", "ConvNextModel", _PIXELS, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 2, 1]),
    "vision/convnextv2": _hf("ConvNextV2Config", "ConvNextV2Model", _PIXELS, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 2, 1]),
    "vision/resnet": _hf("ResNetConfig", "ResNetForImageClassification", _PIXELS, embedding_size=32, hidden_sizes=[64, 96], depths=[2, 2]),
    "vision/segformer": _hf("SegformerConfig", "SegformerForSemanticSegmentation", _PIXELS, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=64),
    "vision/mobilevit": _hf("MobileViTConfig", "MobileViTForImageClassification", _PIXELS, image_size=64),
    "vision/mobilenet-v2": _hf("MobileNetV2Config", "MobileNetV2Model", _PIXELS),
    "vision/pvt-v2": _hf("PvtV2Config", "PvtV2Model", _PIXELS, image_size=64, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]),
    "vision/poolformer": _hf("PoolFormerConfig", "PoolFormerModel", _PIXELS, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1]),
    "vision/levit": _hf("LevitConfig", "LevitModel", _PIXELS, image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8]),
    "vision/yolos": _hf("YolosConfig", "YolosForObjectDetection", _PIXELS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, image_size=[64, 64]),
    "vision/dpt": _hf("DPTConfig", "DPTForDepthEstimation", _PIXELS, **{**_VIT, "num_hidden_layers": 4}, patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 32, 48, 48], fusion_hidden_size=32, is_hybrid=False),
    "vision/detr": _hf("DetrConfig", "DetrForObjectDetection", _PIXELS, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, num_queries=20),
    "vision/conditional-detr": _hf("ConditionalDetrConfig", "ConditionalDetrForObjectDetection", _PIXELS, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, num_queries=20),
    "audio/wav2vec2": _hf("Wav2Vec2Config", "Wav2Vec2ForCTC", _WAVE, **_SPEECH),
    "audio/hubert": _hf("HubertConfig", "HubertForCTC", _WAVE, **_SPEECH),
    "audio/wavlm": _hf("WavLMConfig", "WavLMModel", _WAVE, **_SPEECH),
    "audio/unispeech": _hf("UniSpeechConfig", "UniSpeechForCTC", _WAVE, **_SPEECH, num_ctc_classes=30, replace_prob=0.5),
    "audio/data2vec": _hf("Data2VecAudioConfig", "Data2VecAudioModel", _WAVE, **_SPEECH),
    "audio/sew": _hf("SEWConfig", "SEWForCTC", _WAVE, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, conv_dim=(32,) * 13, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4),
    "audio/wav2vec2-conformer": _hf("Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC", _WAVE, **_SPEECH, vocab_size=30),
    "audio/whisper-encoder": lambda: _whisper(),
    "audio/ast": _hf("ASTConfig", "ASTForAudioClassification", {"input_values": ("image", (1, 64, 64))}, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, max_length=64, num_mel_bins=64),
    "audio/speech-to-text-encoder": lambda: _speech_to_text(),
    **{
        f"smp/{decoder}-{encoder}": _smp(decoder, encoder)
        for decoder, encoder in [
            *itertools.product(
                (
                    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN",
                    "UPerNet", "Segformer",
                ),
                ("resnet18", "mobilenet_v2", "efficientnet-b0"),
            ),
            ("Segformer", "mit_b0"), ("DPT", "tu-vit_tiny_patch16_224"),
        ]
    },
    "monai/unet": _monai("UNet", (1, 1, 32, 32, 32), **_3D, channels=(8, 16, 32), strides=(2, 2), num_res_units=2),
    "monai/basic-unet": _monai("BasicUNet", (1, 1, 64, 64), spatial_dims=2, in_channels=1, out_channels=2, features=(16, 16, 32, 64, 64, 16)),
    "monai/segresnet": _monai("SegResNet", (1, 1, 32, 32, 32), **_3D, init_filters=8),
    "monai/attention-unet": _monai("AttentionUnet", (1, 1, 32, 32, 32), **_3D, channels=(8, 16, 32), strides=(2, 2)),
    "monai/dynunet": _monai("DynUNet", (1, 1, 32, 32, 32), **_3D, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32]),
    "monai/vnet": _monai("VNet", (1, 1, 32, 32, 32), spatial_dims=3, in_channels=1, out_channels=2),
    "monai/unetr": _monai("UNETR", (1, 1, 32, 32, 32), in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=8, hidden_size=96, mlp_dim=192, num_heads=4),
    "monai/swin-unetr": _monai("SwinUNETR", (1, 1, 64, 64, 64), in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
    **{
        f"own/{name.replace('_', '-')}": _own(name)
        for name in (
            "crnn", "conformer", "espcn", "fsrcnn", "edsr", "tcn", "vad", "yolox", "nanodet", "dscnn", "tcresnet", "detr",
        )
    },
}  # fmt: skip


def _whisper() -> Built:
    import torch

    library = importlib.import_module("transformers")
    config = library.WhisperConfig(
        vocab_size=100, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, max_source_positions=32,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, num_mel_bins=20, pad_token_id=0,
    )  # fmt: skip
    return library.WhisperModel(config).encoder, torch.rand(1, 20, 64)


def _speech_to_text() -> Built:
    import torch

    library = importlib.import_module("transformers")
    config = library.Speech2TextConfig(
        vocab_size=100, d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=256, conv_channels=48,
        input_feat_per_channel=20, pad_token_id=0,
    )  # fmt: skip
    return library.Speech2TextModel(config).encoder, torch.rand(1, 64, 20)
