"""The modified ResNet: strides, grids, attention pool, another resolution."""

import torch

from diptych import towers


def test_strides_are_average_pools(tiny_resnet):
    tower = towers.build(tiny_resnet, 24)
    convs = [m for m in tower.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.stride for c in convs].count((2, 2)) == 1  # the first of the stem
    for i, stage in enumerate(tower.blocks):
        assert isinstance(stage[0].avgpool, torch.nn.AvgPool2d) == (i > 0)
        assert stage[0].downsample is not None
        assert all(bottleneck.downsample is None for bottleneck in stage[1:])
    assert {k.split(".", 3)[3] for k in tower.state_dict() if "downsample" in k} == {
        *("downsample.0.weight", "downsample.1.weight", "downsample.1.bias"),
        *(f"downsample.1.{x}" for x in ("running_mean", "running_var", "num_batches_tracked")),
    }


def test_stages_and_their_grids(tiny_resnet):
    tower = towers.build(tiny_resnet, 24).eval()
    hidden = tower.hidden(torch.randn(2, 3, 64, 128), layers=(0, 1, 2, 3, 4))
    assert hidden.grid == (2, 4)
    shapes = {i: tuple(tokens.shape[1:]) for i, tokens in hidden.tokens.items()}
    assert shapes == {0: (512, 8), 1: (512, 32), 2: (128, 64), 3: (32, 128), 4: (8, 256)}


def test_the_pool_is_the_originals(tiny_resnet):
    """openai/CLIP calls F.multi_head_attention_forward with the mean as query."""
    tower = towers.build(tiny_resnet, 24).eval()
    x = torch.randn(3, 4, 256)
    tokens = torch.cat([x.mean(1, keepdim=True), x], dim=1)
    tokens = tokens + tower.attn_pool.positional_embedding
    attn = tower.attn_pool.attn
    biases = torch.cat([attn.q_proj.bias, attn.k_proj.bias, attn.v_proj.bias])
    expected, _ = torch.nn.functional.multi_head_attention_forward(
        query=tokens[:, :1].transpose(0, 1),
        key=tokens.transpose(0, 1),
        value=tokens.transpose(0, 1),
        embed_dim_to_check=256,
        num_heads=4,
        q_proj_weight=attn.q_proj.weight,
        k_proj_weight=attn.k_proj.weight,
        v_proj_weight=attn.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=biases,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attn.out_proj.weight,
        out_proj_bias=attn.out_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    assert torch.allclose(tower.attn_pool(x, (2, 2)), expected[0], atol=1e-6)


def test_attention_is_of_the_pool(tiny_resnet):
    tower = towers.build(tiny_resnet, 24).eval()
    image = torch.randn(2, 3, 64, 64)
    assert tower.hidden(image, attention=(4, -1)).attention[-1].shape == (2, 4, 1, 5)
