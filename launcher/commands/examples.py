"""Examples of every command, shown at the end of its --help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("kohyakit demo", "kohyakit demo --dir my-demo"),
    "validate": (
        "kohyakit validate preset.json",
        "kohyakit validate *.json --json",
        "kohyakit validate lora.safetensors",
    ),
    "plan": (
        "kohyakit plan preset.json --set train_data_dir=data/training_images --set output_dir=out",
        "kohyakit plan sdxl-character --vram 8",
    ),
    "launch": (
        "kohyakit launch preset.json --set output_name=n0m3",
        "kohyakit launch preset.json --processes 2 --gpu-ids 0,1",
        "kohyakit launch preset.json --print-command",
    ),
    "resume": ("kohyakit resume out/n0m3.run", "kohyakit resume out/n0m3.safetensors --epochs 3"),
    "convert": (
        "kohyakit convert preset.json --to sd-scripts -o preset.toml",
        "kohyakit convert lora.safetensors --to kohya-gui -o preset.json",
    ),
    "diff": ("kohyakit diff mine.json theirs.toml", "kohyakit diff preset.json lora.safetensors --all"),
    "explain": ("kohyakit explain network_alpha", "kohyakit explain LoRA_type"),
    "inspect": ("kohyakit inspect lora.safetensors", "kohyakit inspect lora.safetensors --to kohya-gui -o preset.json"),
    "presets": ("kohyakit presets", "kohyakit presets sdxl-8gb"),
    "report": ("kohyakit report out/n0m3.run", "kohyakit report out/n0m3.run -o page.html"),
    "schema": ("kohyakit schema kohya-gui",),
    "prepare": (
        "kohyakit dataset prepare photos --name N0m3",
        "kohyakit dataset prepare photos.zip --name N0m3 --repeats 10",
    ),
    "check": ("kohyakit dataset check photos_N0m3 --sheet sheet.html",),
    "caption": (
        'kohyakit dataset caption photos_N0m3 --model blip --prefix "N0m3, "',
        "kohyakit dataset caption photos_N0m3 --model wd14 --append",
    ),
    "compare": (
        "kohyakit compare out/n0m3.run --held-out photos-kept-aside",
        "kohyakit compare loras-of-sd-scripts --set pretrained_model_name_or_path=model.safetensors",
    ),
    "lora merge": (
        "kohyakit lora merge style.safetensors face.safetensors --weights 0.6,0.9 -o both.safetensors",
        "kohyakit lora merge face.safetensors --into model.safetensors -o model-face.safetensors",
    ),
    "lora resize": (
        "kohyakit lora resize face.safetensors --rank 16 -o face-16.safetensors",
        "kohyakit lora resize face.safetensors --keep 0.95 -o face-small.safetensors",
    ),
    "lora extract": ("kohyakit lora extract tuned.safetensors base.safetensors --rank 64 -o learnt.safetensors",),
    "lora convert": (
        "kohyakit lora convert theirs.safetensors --to kohya -o ours.safetensors",
        "kohyakit lora convert face.safetensors --to peft -o face-peft",
    ),
    "pack": ("kohyakit dataset pack photos_N0m3 -o upload.zip",),
}


def epilog(command: str) -> str:
    """The examples as click prints them without wrapping."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
