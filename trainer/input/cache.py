"""What VAE and text encoders make of the data, computed once: in memory or beside the pictures (reference section 10).

Files on disk have the reference's names and arrays, and one more: a fingerprint of everything the numbers depend on. A
file whose fingerprint differs is made again, never used.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.config import TrainConfig
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.captions import fixed, random_settings
from trainer.dataset.files import Sample, Scan
from trainer.dataset.images import Unreadable
from trainer.dataset.order import Assignment
from trainer.families import Conditioning
from trainer.input import cache_files, pixels

Encode = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # (done, of how many)
NAMES = ("latents", "latents_flipped", "alpha_mask")
READERS = 8  # threads that decode pictures ahead of the VAE
FIRST_ENCODER = 768  # features of SDXL's first text encoder in the joint hidden state


@dataclass(frozen=True)
class _Latents:
    """One picture: float32 [4,h,w], its mirror image encoded apart, its mask uint8 [1,H,W]."""

    normal: Tensor
    flipped: Tensor | None
    mask: Tensor | None


class LatentCache:
    """Unscaled float32 latents of every sample of a scan; `notes` says what was found on disk."""

    def __init__(self, scan: Scan, assignment: Assignment, config: TrainConfig, cache_suffix: str) -> None:
        self.scan, self.assignment, self.config = scan, assignment, config
        self.in_memory = not config.cache_latents_to_disk
        self.notes: list[Problem] = []
        self._memory: dict[int, _Latents] = {}
        self._ready: set[int] = set()
        self._vae = cache_files.weights_mark(config.vae or config.pretrained_model_name_or_path, ("vae",))
        self._files = [] if self.in_memory else self._named(cache_suffix)

    def _named(self, suffix: str) -> list[Path]:
        """A file for every sample; pictures that would share one, but not its content, get longer names (traps T17)."""
        owners: dict[Path, tuple[Any, ...]] = {}
        files = []
        for sample, choice in zip(self.scan.samples, self.assignment.choices, strict=True):
            subset = self.scan.subset(sample)
            made_from = (sample.path, choice, subset.resize_interpolation, subset.flip_aug, subset.alpha_mask)
            size = f"{sample.width:04d}x{sample.height:04d}"
            bucket = f"{choice.bucket[0]:04d}x{choice.bucket[1]:04d}"
            names = [
                f"{sample.path.stem}_{size}",
                f"{sample.path.name}_{size}",
                f"{sample.path.name}_{size}_{bucket}",
                f"{sample.path.name}_{size}_{bucket}_{sample.dataset}_{sample.subset}",
            ]
            paths = [sample.path.with_name(f"{name}_{suffix}.npz") for name in names]
            file = next((path for path in paths if owners.get(path, made_from) == made_from), paths[-1])
            owners[file] = made_from
            files.append(file)
        return files

    def missing(self) -> list[int]:
        """Indices of the samples that `fill` would encode."""
        if not self.in_memory:
            verdicts = {index: self._verdict(index) for index in range(len(self._files)) if index not in self._ready}
            self._ready |= {index for index, verdict in verdicts.items() if verdict in ("fresh", "foreign")}
            self._note(list(verdicts.values()))
        return [index for index in range(len(self.scan.samples)) if index not in self._ready]

    def _note(self, verdicts: list[str]) -> None:
        for verdict, code, must in (
            (
                "foreign",
                "foreign-cache",
                "were written by another trainer: used, because size and date fit; delete them if the VAE was another",
            ),
            ("stale", "stale-cache", "do not fit picture, bucket, VAE or settings any more and are made again"),
        ):
            if verdict in verdicts:
                self.notes.append(
                    Problem(
                        code=code,
                        severity="note",
                        key="cache_latents_to_disk",
                        got=f"{verdicts.count(verdict)} files",
                        must=must,
                    )
                )

    def _verdict(self, index: int) -> str:
        """What the file of a sample is worth: fresh, foreign (no fingerprint, but it fits), stale or absent."""
        file, sample = self._files[index], self.scan.samples[index]
        if not file.exists():
            return "absent"
        if self.config.skip_cache_check:
            return "fresh"
        found = cache_files.load(file, (*NAMES, "original_size"))
        if found is None or not self._needed(index) <= found[0].keys():
            return "stale"
        arrays, fingerprint = found
        if fingerprint is None:
            newer = file.stat().st_mtime_ns >= sample.path.stat().st_mtime_ns
            fits = self._fits(index, arrays["latents"]) and _equal(
                arrays.get("original_size"), (sample.width, sample.height)
            )
            return "foreign" if newer and fits and sample.orientation == 1 else "stale"
        source = fingerprint.pop("source", [None])
        same = fingerprint == self._fingerprint(index) and cache_files.same_source(sample.path, source)
        return "fresh" if same else "stale"

    def _needed(self, index: int) -> set[str]:
        subset = self.scan.subset(self.scan.samples[index])
        return {
            name for name, wanted in zip(NAMES, (True, subset.flip_aug, self._masked(index)), strict=True) if wanted
        }

    def _masked(self, index: int) -> bool:
        sample = self.scan.samples[index]
        return self.scan.subset(sample).alpha_mask and sample.mask is None

    def _fits(self, index: int, latents: np.ndarray) -> bool:
        width, height = self.assignment.choices[index].bucket
        return latents.ndim == 3 and latents.shape[1:] == (height // 8, width // 8)

    def _fingerprint(self, index: int) -> dict[str, Any]:
        sample, choice = self.scan.samples[index], self.assignment.choices[index]
        subset = self.scan.subset(sample)
        return {
            "version": cache_files.VERSION,
            "bucket": list(choice.bucket),
            "resized": list(choice.resized),
            "crop": list(choice.crop),
            "filter": subset.resize_interpolation,
            "matte": list(pixels.MATTE) if sample.alpha and not self._masked(index) else None,
            "vae": self._vae,
        }

    def fill(
        self,
        encode: Encode,
        progress: Progress | None = None,
        *,
        retry: Encode | None = None,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        """Encodes what is missing. `encode` takes pictures [B,3,H,W] in [-1,1] and gives latents [B,4,H/8,W/8].

        Latents that are not finite are tried once more through `retry`; then ConfigError `nan-latents` names the
        pictures. Process `rank` of several takes its share; `exchange` has to follow then.
        """
        missing = self.missing()
        if not self.in_memory:
            missing = list({self._files[index]: index for index in missing}.values())
        # By index, not by place in the list: another process may have filled some before this one looked.
        missing = [index for index in missing if index % processes == rank]
        done = 0
        for chunk, pictures, masks in self._decoded(missing):
            latents = self._encoded(encode, retry, pictures, chunk)
            flips = self.scan.subset(self.scan.samples[chunk[0]]).flip_aug
            mirrored = self._encoded(encode, retry, pictures.flip(-1), chunk) if flips else [None] * len(chunk)
            for index, normal, flipped, mask in zip(chunk, latents, mirrored, masks, strict=True):
                self._keep(index, _Latents(normal, flipped, mask))
            done += len(chunk)
            if progress:
                progress(done, len(missing))

    def exchange(self, gather: Callable[[list[Any]], list[Any]]) -> None:
        """Every process gets what the others hold in memory; `gather` joins the lists of all processes."""
        if self.in_memory:
            self._memory = dict(gather(list(self._memory.items())))
        self._ready = set(range(len(self.scan.samples)))

    def _chunks(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Samples that may be encoded together, in the order of their buckets."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index in indices:
            flips = self.scan.subset(self.scan.samples[index]).flip_aug
            groups.setdefault((self.assignment.choices[index].bucket, flips), []).append(index)
        size = self.config.vae_batch_size
        for key in sorted(groups):
            yield from (groups[key][start : start + size] for start in range(0, len(groups[key]), size))

    def _decoded(self, indices: Sequence[int]) -> Iterator[tuple[list[int], Tensor, list[Tensor | None]]]:
        """(indices, pictures [B,3,H,W], masks), decoded by threads a little ahead of their use."""
        waiting: deque[tuple[list[int], list[Future[tuple[Tensor, Tensor | None]]]]] = deque()
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
            for chunk in [*self._chunks(indices), None]:
                if chunk is not None:
                    waiting.append((chunk, [pool.submit(self._picture, index) for index in chunk]))
                while waiting and (chunk is None or len(waiting) > READERS):
                    ready, futures = waiting.popleft()
                    made = [future.result() for future in futures]
                    yield ready, torch.stack([picture for picture, _ in made]), [mask for _, mask in made]

    def _picture(self, index: int) -> tuple[Tensor, Tensor | None]:
        sample, choice = self.scan.samples[index], self.assignment.choices[index]
        interpolation = self.scan.subset(sample).resize_interpolation
        try:
            colours, mask = pixels.read(sample.path, alpha=self._masked(index))
        except Unreadable as fault:
            raise unreadable(sample, fault) from None
        image = pixels.to_tensor(pixels.fit(colours, choice, choice.crop, interpolation))
        if mask is None:
            return image, None
        return image, pixels.planes(pixels.fit(mask, choice, choice.crop, interpolation))

    def _encoded(self, encode: Encode, retry: Encode | None, pictures: Tensor, chunk: list[int]) -> list[Tensor]:
        for attempt in (encode, retry):
            if attempt is not None:
                latents = attempt(pictures).detach().float().cpu()
                if bool(latents.isfinite().all()):
                    return [one.clone() for one in latents]
        bad = [
            str(self.scan.samples[index].path)
            for index, one in zip(chunk, latents, strict=True)
            if not one.isfinite().all()
        ]
        raise ConfigError(
            [
                Problem(
                    code="nan-latents",
                    file=file,
                    key="no_half_vae",
                    must="gives latents that are not numbers",
                    fix="set no_half_vae, or use another VAE",
                )
                for file in bad
            ]
        )

    def _keep(self, index: int, latents: _Latents) -> None:
        self._ready.add(index)
        if self.in_memory:
            self._memory[index] = latents
            return
        sample, choice = self.scan.samples[index], self.assignment.choices[index]
        arrays = {
            "latents": latents.normal.numpy(),
            "original_size": np.array([sample.width, sample.height]),
            "crop_ltrb": np.array(choice.crop_ltrb),
        }
        if latents.flipped is not None:
            arrays["latents_flipped"] = latents.flipped.numpy()
        if latents.mask is not None:
            arrays["alpha_mask"] = latents.mask[0].numpy().astype(np.float32) / 255
        mark = {**self._fingerprint(index), "source": cache_files.source_mark(sample.path)}
        cache_files.save(self._files[index], arrays, mark)

    def get(self, index: int, flipped: bool = False) -> Tensor:
        """Latents [4,h,w] of a sample, or of its mirror image."""
        if self.in_memory:
            kept = self._memory[index]
            return kept.flipped if flipped and kept.flipped is not None else kept.normal
        array = self._array(index, "latents_flipped" if flipped else "latents")
        if not self._fits(index, array):
            raise error(
                "stale-cache",
                "holds latents of another size",
                file=str(self._files[index]),
                key="skip_cache_check",
                got=list(array.shape),
                fix="leave skip_cache_check out, so that the file is made again",
            )
        return torch.from_numpy(array).float()

    def file(self, index: int) -> Path | None:
        """Where a sample's latents lie; None when they are in memory."""
        return None if self.in_memory else self._files[index]

    def mask(self, index: int) -> Tensor | None:
        """Mask [1,H,W] in [0,1] from the picture's transparency, or None when it is not used."""
        if not self._masked(index):
            return None
        if self.in_memory:
            kept = self._memory[index].mask
            return None if kept is None else kept.float() / 255
        return torch.from_numpy(self._array(index, "alpha_mask")).float()[None]

    def _array(self, index: int, name: str) -> np.ndarray:
        found = cache_files.load(self._files[index], (name,))
        if found is None or name not in found[0]:
            raise error(
                "broken-cache",
                f"must hold {name}",
                file=str(self._files[index]),
                key="cache_latents_to_disk",
                fix="delete the file, and leave skip_cache_check out",
            )
        return found[0][name]


def unreadable(sample: Sample, fault: Exception) -> ConfigError:
    """The error of a picture that cannot be decoded."""
    return error(
        "unreadable-image",
        f"cannot be decoded: {fault}",
        file=str(sample.path),
        key="image_dir",
        fix="replace or remove the file",
    )


def _equal(stored: np.ndarray | None, wanted: Sequence[int]) -> bool:
    return stored is not None and [int(number) for number in stored] == list(wanted)


class TextCache:
    """SDXL's text encoder outputs of every sample, each distinct text once.

    Other than in the reference the text is what training would use: prefix, suffix and separators applied (traps T5).
    ConfigError `random-captions` when the settings change captions while training.
    """

    def __init__(self, scan: Scan, config: TrainConfig) -> None:
        self.config = config
        self.batch_size = max((spec.batch_size for spec in scan.specs), default=1)
        used = {name for spec in scan.specs for subset in spec.subsets for name in random_settings(subset)}
        if used:
            raise ConfigError(
                [
                    Problem(
                        code="random-captions",
                        key=name,
                        must="excludes cache_text_encoder_outputs",
                        fix=f"leave {name} out, or encode captions while training",
                    )
                    for name in sorted(used)
                ]
            )
        self.texts = [fixed(sample.caption, scan.subset(sample)) for sample in scan.samples]
        self._kept: dict[str, Conditioning] = {}
        self._files: dict[str, list[Path]] = {}
        self._encoders = cache_files.weights_mark(
            config.pretrained_model_name_or_path, ("text_encoder", "text_encoder_2")
        )
        if config.cache_text_encoder_outputs_to_disk:
            self._name(scan.samples)
            self._read()

    def _name(self, samples: Sequence[Sample]) -> None:
        owners: dict[Path, str] = {}
        for number, (sample, text) in enumerate(zip(samples, self.texts, strict=True)):
            names = [sample.path.stem, sample.path.name, f"{sample.path.name}_{number}"]
            paths = [sample.path.with_name(f"{name}_te_outputs.npz") for name in names]
            file = next(path for path in paths if owners.get(path, text) == text)
            owners[file] = text
            self._files.setdefault(text, []).append(file)

    def _fingerprint(self, text: str) -> dict[str, Any]:
        names = ("max_token_length", "weighted_captions")
        settings = {name: getattr(self.config, name) for name in names}
        if self.config.sdxl_text_projection != "transposed":  # files made before the option was there stay good
            settings["sdxl_text_projection"] = self.config.sdxl_text_projection
        return {"version": cache_files.VERSION, "text": text, "encoders": self._encoders, **settings}

    def _read(self) -> None:
        for text, files in self._files.items():
            found = (cache_files.load(file) for file in files)
            arrays = next((one[0] for one in found if one and one[1] == self._fingerprint(text)), None)
            if arrays is not None:
                hidden = np.concatenate([arrays["hidden_state1"], arrays["hidden_state2"]], axis=-1)
                pooled = torch.from_numpy(arrays["pool2"])[None] if "pool2" in arrays else None
                self._kept[text] = Conditioning(torch.from_numpy(hidden)[None], pooled)

    def missing(self) -> list[str]:
        """The distinct texts that `fill` would encode."""
        return [text for text in dict.fromkeys(self.texts) if text not in self._kept]

    def fill(self, encode: Callable[[list[str]], Conditioning], progress: Progress | None = None) -> None:
        """Encodes what is missing; `encode` takes captions and gives their conditioning."""
        missing = self.missing()
        for start in range(0, len(missing), self.batch_size):
            texts = missing[start : start + self.batch_size]
            made = encode(texts).detach_cpu()
            for number, text in enumerate(texts):
                pooled = None if made.pooled is None else made.pooled[number : number + 1].clone()
                self._kept[text] = Conditioning(made.hidden[number : number + 1].clone(), pooled)
                self._write(text)
            if progress:
                progress(start + len(texts), len(missing))

    def _write(self, text: str) -> None:
        kept = self._kept[text]
        hidden = _storable(kept.hidden[0])
        arrays = {"hidden_state1": hidden[:, :FIRST_ENCODER], "hidden_state2": hidden[:, FIRST_ENCODER:]}
        if kept.pooled is not None:
            arrays["pool2"] = _storable(kept.pooled[0])
        for file in dict.fromkeys(self._files.get(text, ())):
            cache_files.save(file, arrays, self._fingerprint(text))

    def get(self, samples: Sequence[int]) -> Conditioning:
        """The conditioning of those samples as one batch."""
        return Conditioning.stack([self._kept[self.texts[index]] for index in samples])


def _storable(values: Tensor) -> np.ndarray:
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
