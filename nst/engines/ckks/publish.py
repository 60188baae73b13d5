"""Publishing: from trained weights to integers, a layout, and what a client needs of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import _sealapi_cpp as sealapi
import numpy as np

from nst.engines.base import CLIENT_FILE, PLAN_FILE, SERVER_FILE
from nst.engines.ckks.client import make_evaluation_keys
from nst.engines.ckks.integers import IntegerLayers, integer_layers
from nst.engines.ckks.network import LeveledNetwork
from nst.engines.ckks.packing import Layout, style_side
from nst.engines.ckks.parameters import Parameters
from nst.engines.ckks.plan import CiphertextBytes, LeveledPlan
from nst.engines.ckks.residues import Ring, exact_groups
from nst.pictures.size import Size

REVISION = 1
"""Goes up by one whenever the server makes other ciphertexts of the same integers and layout."""
CLIENT_ARRAYS = ("scalars", "gain", "offset")


def laid_out(
    network: LeveledNetwork, parameters: Parameters, side: int, size: Size
) -> tuple[IntegerLayers, Layout]:
    """Integers and layout for a level's side and a size of contents.

    Raises:
        CircuitError: if the network does not fit the parameters.
        InputError: if the sizes do not.
    """
    reach = network.architecture.reach
    layout = Layout.for_size(parameters.slots, reach, size, style_side(side))
    return integer_layers(network, parameters, layout.style_cells), layout


def model_id(integers: IntegerLayers, layout: Layout, parameters: Parameters) -> str:
    """Hash of what the server computes, 16 hex digits; the size of contents is not part of it."""
    digest = hashlib.sha256()
    record = [REVISION, parameters.to_dict(), asdict(layout)]
    digest.update(json.dumps(record, sort_keys=True).encode())
    for name, array in sorted(integers.to_arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def publish(
    network: LeveledNetwork,
    parameters: Parameters,
    side: int,
    size: Size,
    runtime: str,
    folder: Path,
) -> LeveledPlan:
    """Write the three files of a model; see `nst.engines.base.Engine.publish`."""
    integers, layout = laid_out(network, parameters, side, size)
    for layer in integers.layers:
        for prime in parameters.primes[: layer.limbs]:
            list(exact_groups(layer.rows() / layer.common, prime))
    ring = Ring(parameters)
    architecture = network.architecture
    # Sizes of ciphertexts and keys depend on the parameters alone: any key shows them.
    secret = sealapi.KeyGenerator(ring.context).secret_key()
    one = make_evaluation_keys(ring, secret, [3])
    plan = LeveledPlan(
        model_id=model_id(integers, layout, parameters),
        runtime=runtime,
        architecture=architecture,
        parameters=parameters,
        layout=layout,
        width=size.width,
        height=size.height,
        evaluation_key_bytes=len(one) // 2 * (2 + len(layout.steps)),
        channel_bytes=_sizes(ring, secret, architecture.stages + 1),
    )
    arrays = integers.to_arrays()
    with (folder / SERVER_FILE).open("wb") as file:
        np.savez_compressed(file, **arrays)
    with (folder / CLIENT_FILE).open("wb") as file:
        np.savez_compressed(
            file,
            parameters=np.array(json.dumps(parameters.to_dict())),
            elements=np.array(plan.galois_elements),
            **{name: arrays[name] for name in CLIENT_ARRAYS},
        )
    (folder / PLAN_FILE).write_text(json.dumps(plan.to_dict(), indent=2) + "\n")
    return plan


def _sizes(ring: Ring, secret: sealapi.SecretKey, content_limbs: int) -> CiphertextBytes:
    encryptor = sealapi.Encryptor(ring.context, secret)

    def seeded(limbs: int) -> int:
        return len(ring.dump(encryptor.encrypt_zero_symmetric(ring.level(limbs))))

    def whole(limbs: int) -> int:
        zero = sealapi.Ciphertext()
        encryptor.encrypt_zero_symmetric(ring.level(limbs), zero)
        return len(ring.dump(zero))

    return CiphertextBytes(
        style=seeded(ring.parameters.levels + 1),
        content=seeded(content_limbs),
        code=whole(content_limbs),
        result=whole(1),
    )
