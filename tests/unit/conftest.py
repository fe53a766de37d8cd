"""What tests of krea-mini's training share."""

import pytest
import torch

from dev.environment import comfyui_root


@pytest.fixture(scope="session")
def encoder():
    from dev.mini import autoencoder

    return autoencoder.LinearEncoder.fit(seed=1, pictures=40)


@pytest.fixture(scope="session")
def captions():
    from dev.mini import text
    from dev.mini.data import Captions

    return Captions(text.Tokenizers(comfyui_root()), text.BagOfWords(seed=0), seed=0)


@pytest.fixture(scope="session")
def trained(captions):
    """A model with every weight away from its start, in numbers that its files hold."""
    from dev.mini.train import Model
    from dev.mini.weights import rounded

    model = Model(len(captions.words))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.load_state_dict(rounded(model.state_dict()))
    return model
