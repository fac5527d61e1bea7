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
        "kohyakit launch preset.json --on slurm --gpus-per-node 2 --time 8:00:00 --partition gpu",
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
    "ui": ("kohyakit ui", "kohyakit ui old_preset.json", "kohyakit ui my_photos_N0m3 models"),
    "schema": ("kohyakit schema kohya-gui",),
    "completion": ("kohyakit completion bash", "kohyakit completion zsh", "kohyakit completion fish"),
    "prepare": (
        "kohyakit dataset prepare photos --name N0m3",
        "kohyakit dataset prepare photos.zip --name N0m3 --repeats 10",
        "kohyakit dataset prepare photos --name N0m3 --preset sd15-character --reg people",
    ),
    "check": ("kohyakit dataset check photos_N0m3 --sheet sheet.html",),
    "caption": (
        'kohyakit dataset caption photos_N0m3 --model blip --prefix "N0m3, "',
        "kohyakit dataset caption photos_N0m3 --model wd14 --append",
        "kohyakit dataset caption photos_N0m3 --model joycaption --prompt 'Describe it plainly.' --dry-run",
        "kohyakit dataset caption photos_N0m3 --endpoint http://127.0.0.1:11434/v1 --model llava",
    ),
    "tags": (
        "kohyakit dataset tags photos_N0m3 list",
        "kohyakit dataset tags photos_N0m3 remove 'blurry, *background*' --dry-run",
        "kohyakit dataset tags photos_N0m3 add N0m3 --first --create",
        "kohyakit dataset tags photos_N0m3 replace 'glasses' 'round glasses'",
        "kohyakit dataset tags photos_N0m3 undo",
    ),
    "mask": (
        "kohyakit dataset mask photos_N0m3 --from face --show",
        "kohyakit dataset mask photos_N0m3 --from folder --masks my_masks",
    ),
    "pack": (
        "kohyakit dataset pack photos_N0m3 -o upload.zip",
        "kohyakit dataset pack photos_N0m3 -o upload.zip --preset civitai-pony",
    ),
    "queue add": (
        "kohyakit queue add n0m3.json --set network_dim=16",
        "kohyakit queue add out/n0m3.run --epochs 3",
    ),
    "queue list": ("kohyakit queue list", "kohyakit queue list --json"),
    "queue run": ("kohyakit queue run", "kohyakit queue run --gpus 0,1 --stay"),
    "queue pause": ("kohyakit queue pause 3", "kohyakit queue pause"),
    "queue resume": ("kohyakit queue resume 3", "kohyakit queue resume"),
    "queue retry": ("kohyakit queue retry 3",),
    "queue move": ("kohyakit queue move 5 --first", "kohyakit queue move 5 --before 3"),
    "queue remove": ("kohyakit queue remove 3", "kohyakit queue remove --finished"),
    "queue stop": ("kohyakit queue stop",),
    "sweep": (
        "kohyakit sweep n0m3.json --vary network_dim=8,16,32 --vary unet_lr=1e-4,5e-5",
        "kohyakit sweep n0m3.json --vary unet_lr=1e-5..1e-3 --trials 12",
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
}


def epilog(command: str) -> str:
    """The examples as click prints them without wrapping."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
