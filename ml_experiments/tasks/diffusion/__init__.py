"""Parts of experiments that run diffusers pipelines; they import torch, so import them lazily."""
