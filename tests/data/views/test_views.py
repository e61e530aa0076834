import shutil

import pytest
import torch
from jsonargparse import ArgumentParser
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sslinfo.data.views import ViewPipeline, views_preset
from sslinfo.data.views import pipeline as views_module
from sslinfo.data.views import view as view_module
from sslinfo.data.views.view import View
from sslinfo.errors import UserError

# Statistical tests have fixed seeds. With ALARM as their level, each p-value below falsely alarms with 1e-4.
ALARM = 1e-4
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
WHERE = {"seed": 7, "epoch": 2, "batch": 5}
EVERYTHING = View(
    crop_scale=(0.1, 1.0),
    flip=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    grey=0.2,
    blur=0.5,
    solarize=0.3,
    degrees=20.0,
    translate=0.2,
    scale=(0.8, 1.2),
    shear=10.0,
)
PRESETS = ["simclr", "swav", "moco", "simsiam", "barlow_twins", "byol", "mocov3", "vicreg", "wmse"]


def batch(n=24, c=3, h=32, w=32):
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def sample(view, n, h=32, w=32, number=0, **changes):
    where = {"view": number, "index": torch.arange(n), "height": h, "width": w} | WHERE | changes
    return view.sample(**where)


def by_torchvision(image, view, drawn, i, size):
    """The view of image i, by torchvision's operations on one image, in the published order."""
    value = {name: tensor[i].item() for name, tensor in drawn.items() if name != "order"}
    x = F.to_dtype(image, torch.float32, scale=True)
    box = [value[name] for name in ("top", "left", "height", "width")]
    x = F.resized_crop(x, *box, [size, size], v2.InterpolationMode(view.interpolation), antialias=True).clamp(0, 1)
    flips_first = "angle" in value
    if value["flip"] and flips_first:
        x = F.horizontal_flip(x)
    if "angle" in value:
        shift = [float(round(value[name] * size)) for name in ("dx", "dy")]
        x = F.affine(x, value["angle"], shift, value["scale"], [value["shear"], 0.0], v2.InterpolationMode.BILINEAR)
    for operation in drawn["order"].tolist() if "order" in drawn else ():
        name = ("brightness", "contrast", "saturation", "hue")[operation]
        if name in value:
            x = getattr(F, f"adjust_{name}")(x, value[name])
    if value.get("grey"):
        x = F.rgb_to_grayscale(x, len(x))
    if value.get("sigma"):
        taps = 3 if size < 50 else 7
        x = F.gaussian_blur(x, [taps, taps], [value["sigma"]] * 2)
    if value.get("solarize"):
        x = F.solarize(x, view.solarize_threshold)
    return F.horizontal_flip(x) if value["flip"] and not flips_first else x


@pytest.mark.parametrize(
    ("view", "c", "h", "w", "size"),
    [
        *((view, 3, 32, 32, 32) for name in ("simclr", "byol", "vicreg") for view in views_preset(name)),
        (EVERYTHING, 3, 40, 31, 32),
        (EVERYTHING, 1, 32, 32, 24),
        (View(crop_scale=(0.3, 0.6), interpolation="bilinear", blur=1.0), 3, 90, 70, 64),
        (View(), 3, 20, 33, 32),
        (View(flip=1.0, jitter=(0.4, 0.4, 0.0, 0.0), jitter_probability=1.0), 1, 8, 8, 8),
    ],
)
def test_whole_views_equal_torchvision_with_the_same_parameters(view, c, h, w, size):
    images = batch(24, c, h, w)
    for number in range(3):
        drawn = sample(view, 24, h, w, batch=number)
        got = view.apply(images, drawn, size)
        for i, image in enumerate(images):
            want = by_torchvision(image, view, drawn, i, size)
            # A solarised value within a rounding error of the threshold may fall on the other side of it.
            wrong = (got[i] - want).abs() > 1e-4
            near = (want - view.solarize_threshold).abs() < 1e-3
            near |= (1.0 - want - view.solarize_threshold).abs() < 1e-3
            assert not (wrong & ~near).any()
            assert wrong.sum() <= 2


def test_normalisation_comes_last():
    views = ViewPipeline(views_preset("vicreg"), 32, MEAN, STD)
    images, index = batch(), torch.arange(24)
    for number, got in enumerate(views(images, index=index, **WHERE)):
        drawn = sample(views.views[number], 24, number=number)
        want = F.normalize(views.views[number].apply(images, drawn, 32), MEAN, STD)
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-5)


# What is drawn: against torchvision's own generators.

N = 4000


def counts_agree(ours, theirs, bins=12):
    """p-value of the chi-squared test that two integer samples have one distribution, in bins of about equal counts."""
    both = torch.cat((ours, theirs)).double()
    edges = both.quantile(torch.linspace(0, 1, bins + 1).double()[1:-1]).unique()
    table = [torch.bincount(torch.bucketize(x.double(), edges), minlength=len(edges) + 1) for x in (ours, theirs)]
    table = torch.stack(table)
    return stats.chi2_contingency(table[:, table.sum(0) > 0].numpy()).pvalue


def theirs(transform, h=32, w=32, n=N):
    image = torch.empty(3, h, w)
    return [transform.make_params([image]) for _ in range(n)]


@pytest.mark.parametrize(
    ("h", "w", "scale"), [(32, 32, (0.08, 1.0)), (32, 32, (0.2, 1.0)), (60, 40, (0.5, 1.0)), (24, 64, (0.3, 1.0))]
)
def test_boxes_are_distributed_as_torchvisions(h, w, scale):
    # On 24 x 64 pixels many draws end in the central crop.
    drawn = sample(View(crop_scale=scale), N, h, w)
    reference = theirs(v2.RandomResizedCrop(32, scale=scale), h, w)
    for name in ("top", "left", "height", "width"):
        assert counts_agree(drawn[name], torch.tensor([r[name] for r in reference])) > ALARM
    area = torch.tensor([r["height"] * r["width"] for r in reference])
    assert counts_agree(drawn["height"] * drawn["width"], area) > ALARM
    assert (drawn["top"] + drawn["height"]).max() <= h
    assert (drawn["left"] + drawn["width"]).max() <= w
    assert min(drawn["height"].min(), drawn["width"].min()) >= 1


@pytest.mark.parametrize(("h", "w"), [(8, 64), (64, 8), (9, 70)])
def test_the_central_crop_is_torchvisions(h, w):
    # No box of at least half of such an image has a ratio within bounds: each attempt fails.
    drawn = sample(View(crop_scale=(0.5, 1.0)), 10, h, w)
    reference = theirs(v2.RandomResizedCrop(32, scale=(0.5, 1.0)), h, w, 1)[0]
    for name in ("top", "left", "height", "width"):
        assert drawn[name].tolist() == [reference[name]] * 10


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.2, 0.1), (1.5, 0.8, 0.8, 0.5)])
def test_jitter_is_distributed_as_torchvisions(strengths):
    drawn = sample(View(jitter=strengths), N)
    reference = theirs(v2.ColorJitter(*strengths), n=N)
    on = drawn["brightness"] != 1.0
    assert stats.binomtest(int(on.sum()), N, 0.8).pvalue > ALARM
    for name, neutral in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0)):
        ours, other = drawn[name][on], [r[f"{name}_factor"] for r in reference]
        assert stats.ks_2samp(ours.numpy(), other).pvalue > ALARM
        assert (drawn[name][~on] == neutral).all()
    # The four are independent of each other: Spearman's rank correlation.
    factors = torch.stack([drawn[name][on] for name in ("brightness", "contrast", "saturation", "hue")], 1)
    assert stats.spearmanr(factors.numpy()).pvalue[torch.ones(4, 4).triu(1).bool().numpy()].min() > ALARM


def test_the_order_of_the_colours_is_uniform_and_shared_by_a_batch():
    view = View(jitter=(0.4, 0.4, 0.4, 0.1))
    orders = [tuple(sample(view, 1, batch=number)["order"].tolist()) for number in range(1200)]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > ALARM
    # The images of a batch do not change its order, nor does the rank that holds them.
    assert torch.equal(sample(view, 3)["order"], sample(view, 40, index=torch.arange(100, 140))["order"])


def test_affine_maps_are_distributed_as_torchvisions():
    view = View(degrees=12.0, translate=0.25, scale=(0.8, 1.3), shear=5.0)
    drawn = sample(view, N, 8, 8)
    reference = theirs(v2.RandomAffine(12.0, (0.25, 0.25), (0.8, 1.3), 5.0), 8, 8)
    assert stats.ks_2samp(drawn["angle"].numpy(), [r["angle"] for r in reference]).pvalue > ALARM
    assert stats.ks_2samp(drawn["scale"].numpy(), [r["scale"] for r in reference]).pvalue > ALARM
    assert stats.ks_2samp(drawn["shear"].numpy(), [r["shear"][0] for r in reference]).pvalue > ALARM
    for position, name in enumerate(("dx", "dy")):
        shifts = torch.tensor([r["translate"][position] for r in reference])
        assert counts_agree((drawn[name] * 8).round(), shifts) > ALARM


def test_blur_is_distributed_as_torchvisions():
    sigma = sample(View(blur=0.5), N)["sigma"]
    reference = [r["sigma"][0] for r in theirs(v2.GaussianBlur(3, (0.1, 2.0)))]
    assert stats.ks_2samp(sigma[sigma > 0].numpy(), reference).pvalue > ALARM
    assert stats.binomtest(int((sigma > 0).sum()), N, 0.5).pvalue > ALARM


def test_probabilities_and_independence():
    drawn = sample(View(flip=0.5, grey=0.2, solarize=0.1), N)
    for name, probability in (("flip", 0.5), ("grey", 0.2), ("solarize", 0.1)):
        assert stats.binomtest(int(drawn[name].sum()), N, probability).pvalue > ALARM
    joint = torch.stack([drawn[name] for name in ("flip", "grey", "solarize")]).float()
    assert stats.spearmanr(joint.T.numpy()).pvalue[torch.ones(3, 3).triu(1).bool().numpy()].min() > ALARM
    for never, always in ((View(), View(flip=1.0, grey=1.0, solarize=1.0, blur=1.0)),):
        assert not sample(never, N)["flip"].any()
        assert all(sample(always, N)[name].all() for name in ("flip", "grey", "solarize", "sigma"))


# Views are a function of where they are used.


def test_views_depend_on_seed_epoch_index_and_view_alone():
    views = ViewPipeline([EVERYTHING, EVERYTHING], 32, MEAN, STD)
    images, index = batch(), torch.arange(100, 124)
    one, two = views(images, index=index, **WHERE)
    order = torch.randperm(24)
    close = {"rtol": 0.0, "atol": 1e-5}
    for got, want in zip(views(images[order], index=index[order], **WHERE), (one, two), strict=True):
        torch.testing.assert_close(got, want[order], **close)
    torch.testing.assert_close(views(images[:5].float() / 255, index=index[:5], **WHERE)[1], two[:5], **close)
    assert not torch.allclose(one, two, atol=0.1)
    for change in ({"seed": 8}, {"epoch": 3}):
        assert not torch.allclose(views(images, index=index, **WHERE | change)[0], one, atol=0.1)


def make_shard(rank, world_size, images, index):
    # Shards of different sizes, interleaved.
    mine = torch.arange(len(images))[(torch.arange(len(images)) % 5 == 0) == (rank == 0)]
    return mine, ViewPipeline([EVERYTHING] * 2, 32, MEAN, STD)(images[mine], index=index[mine], **WHERE)


def test_views_are_the_same_on_one_process_and_on_two(ranks):
    images, index = batch(), torch.arange(100, 124)
    whole = ViewPipeline([EVERYTHING] * 2, 32, MEAN, STD)(images, index=index, **WHERE)
    answers = ranks(2, make_shard, images, index)
    assert sorted(torch.cat([mine for mine, _ in answers]).tolist()) == list(range(24))
    for mine, made in answers:
        for got, want in zip(made, whole, strict=True):
            torch.testing.assert_close(got, want[mine], rtol=0.0, atol=1e-5)


def test_noise_is_a_function_of_the_image_too():
    views = ViewPipeline(views_preset("digits"), 8, [0.5], [0.25])
    images, index = batch(6, 1, 8, 8), torch.arange(6)
    first = views(images, index=index, **WHERE)
    torch.testing.assert_close(views(images[3:], index=index[3:], **WHERE)[1], first[1][3:], rtol=0.0, atol=1e-5)
    # The noise of mid-grey images under a view that does nothing else has the standard deviation asked for.
    # The standard error is sd / sqrt(2 n); 5 of them, 1e-6.
    n = 64 * 500
    noisy = View(noise=0.05).apply(torch.full((500, 1, 8, 8), 0.5), sample(View(noise=0.05), 500, 8, 8), 8)
    assert abs((noisy - 0.5).std().item() - 0.05) < 5 * 0.05 / (2 * n) ** 0.5


def test_pieces_of_a_batch_do_not_matter(monkeypatch):
    views = ViewPipeline([EVERYTHING], 32, MEAN, STD)
    want = views(batch(), index=torch.arange(24), **WHERE)[0]
    monkeypatch.setattr(views_module, "_CPU_CHUNK", 7 * 3 * 32 * 32)
    torch.testing.assert_close(views(batch(), index=torch.arange(24), **WHERE)[0], want, rtol=0.0, atol=1e-5)


def test_the_settings_of_the_network_do_not_reach_the_views():
    views, arguments = ViewPipeline([EVERYTHING], 32, MEAN, STD), {"index": torch.arange(24), **WHERE}
    want = views(batch(), **arguments)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views(batch(), **arguments)[0], want)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(views(batch(), **arguments)[0], want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_images_are_not_changed():
    images = torch.rand(8, 1, 32, 32)
    kept = images.clone()
    ViewPipeline([EVERYTHING, View()], 32, [0.5], [0.25])(images, index=torch.arange(8), **WHERE)
    assert torch.equal(images, kept)


# Images of mixed sizes, and images without augmentation.


def test_crops_on_the_host_join_the_pipeline():
    view = View(crop_scale=(0.2, 1.0), flip=0.5)
    views = ViewPipeline([view, view], 32, [0.0] * 3, [1.0] * 3)
    images, index = batch(10, 3, 50, 41), torch.arange(10)
    crops = views.host_crops(list(images), seed=7, epoch=2, index=index)
    assert [crop.dtype for crop in crops] == [torch.uint8] * 2
    device = views(images, index=index, **WHERE)
    for got, want in zip(views(crops=crops, index=index, **WHERE), device, strict=True):
        # Rounding to 8 bits: half a level.
        assert (got - want).abs().max() < 0.501 / 255


def test_each_image_of_mixed_sizes_is_cropped_by_its_own_size():
    views = ViewPipeline([View(crop_scale=(0.2, 1.0), flip=0.5)], 24, [0.0] * 3, [1.0] * 3)
    sizes = [(30, 40), (64, 24), (24, 24), (10, 12)]
    images = [batch(1, 3, h, w)[0] for h, w in sizes]
    crops = views.host_crops(images, seed=7, epoch=2, index=torch.arange(4))
    together = views(crops=crops, index=torch.arange(4), **WHERE)[0]
    for i, image in enumerate(images):
        alone = views(image[None], index=torch.tensor([i]), **WHERE)[0][0]
        assert (together[i] - alone).abs().max() < 0.501 / 255


@pytest.mark.parametrize(("h", "w"), [(32, 32), (48, 40), (20, 33)])
def test_clean_is_the_central_square(h, w):
    views, images = ViewPipeline([View()], 32, MEAN, STD), batch(4, 3, h, w)
    side = min(h, w)
    steps = [v2.ToDtype(torch.float32, scale=True), v2.CenterCrop(side), v2.Resize(32, 3, antialias=True)]
    want = F.normalize(v2.Compose(steps)(images).clamp(0, 1), MEAN, STD)
    torch.testing.assert_close(views.clean(images), want, rtol=0.0, atol=1e-5)
    # Resized on the host first, to 8 bits: half a level.
    resized = views.host_clean(list(images))
    assert resized.dtype == torch.uint8
    torch.testing.assert_close(
        views.host_clean(list(images.float() / 255)) * 255, resized.float(), rtol=0.0, atol=0.501
    )
    assert (views.clean(resized) - want).abs().max() * min(STD) < 0.501 / 255


# Edges and errors.


@pytest.mark.parametrize("c", [1, 3])
def test_no_images(c):
    views = ViewPipeline([EVERYTHING, View(noise=0.1)], 16, [0.5] * c, [0.25] * c)
    none = torch.empty(0, dtype=torch.int64)
    made = views(torch.empty(0, c, 32, 32, dtype=torch.uint8), index=none, **WHERE)
    assert [tuple(x.shape) for x in made] == [(0, c, 16, 16)] * 2
    assert EVERYTHING.apply(torch.empty(0, c, 32, 32), sample(EVERYTHING, 0), 16).shape == (0, c, 16, 16)
    assert views.clean(torch.empty(0, c, 32, 32)).shape == (0, c, 16, 16)
    assert views.host_clean([]).shape == (0, c, 16, 16)
    assert [tuple(x.shape) for x in views.host_crops([], seed=0, epoch=0, index=none)] == [(0, c, 16, 16)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, "flip must be in .0, 1., got 1.5"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.2)}, r"crop_scale must be .* in \(0, 1\], got \(0.5, 1.2\)"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"interpolation": "nearest"}, "'nearest'"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, r"jitter's hue must be in \[0, 0.5\], got 0.6"),
        ({"blur_kernel": 4}, "blur_kernel must be odd and positive, got 4"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"noise": float("nan")}, "noise"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        View(**arguments)


def test_wrong_uses_are_named():
    views, images = ViewPipeline([View(), View()], 8, MEAN, STD), batch(4, 3, 8, 8)
    index = torch.arange(4)
    with pytest.raises(UserError, match="both None"):
        views(index=index, **WHERE)
    with pytest.raises(UserError, match="one tensor for each of 2 views, got 1"):
        views(crops=[images], index=index, **WHERE)
    with pytest.raises(UserError, match=r"one index each.*3 indices"):
        views(images, index=index[:3], **WHERE)
    with pytest.raises(UserError, match="at least one View"):
        ViewPipeline([], 8, MEAN, STD)
    with pytest.raises(UserError, match="no preset 'dino': choose one of simclr"):
        views_preset("dino")
    with pytest.raises(UserError, match="got 4: set the saturation"):
        View(grey=1.0).apply(batch(4, 4, 8, 8), sample(View(grey=1.0), 4, 8, 8), 8)


def test_views_can_be_written_in_a_configuration():
    parser = ArgumentParser()
    parser.add_argument("--views", type=list[View])
    text = "[{class_path: sslinfo.data.View, init_args: {crop_scale: [0.2, 1.0], jitter: [0.4, 0.4, 0.2, 0.1]}}]"
    # jsonargparse 4.49 renamed it.
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    made = instantiate(parser.parse_args([f"--views={text}"])).views
    assert made[0].crop_scale == (0.2, 1.0)
    assert made[0].jitter == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_two_views(name):
    images = batch(8)
    made = ViewPipeline(views_preset(name), 32, MEAN, STD)(images, index=torch.arange(8), **WHERE)
    assert len(made) == 2
    assert all(x.isfinite().all() and x.shape == (8, 3, 32, 32) for x in made)


# Compiled.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the compiled views are not checked")
def test_compiled_views_are_the_same_and_compile_once():
    views = ViewPipeline(views_preset("vicreg"), 32, MEAN, STD)
    compiled = ViewPipeline(views_preset("vicreg"), 32, MEAN, STD, compile=True)
    calls = [(24, number) for number in range(4)] + [(17, 4)]
    for position, (n, number) in enumerate(calls):
        arguments = {"index": torch.arange(n), "seed": 0, "epoch": 0, "batch": number}
        # Other orders of the colours and a shorter last batch need no other code.
        stance = "default" if position == 0 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            made = compiled(batch(n), **arguments)
        for got, want in zip(made, views(batch(n), **arguments), strict=True):
            torch.testing.assert_close(got, want, rtol=0.0, atol=1e-4)


def test_a_failed_compilation_says_what_to_do(monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler")

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: whole(function, dynamic=dynamic, backend=broken))
    view_module._kernel.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"resample_matrix could not be compiled: install a C\+\+ compiler"):
            ViewPipeline([View()], 8, [0.5], [0.25], compile=True)(batch(2, 1, 8, 8), index=torch.arange(2), **WHERE)
    finally:
        view_module._kernel.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: views on a GPU are not checked")
def test_a_gpu_makes_the_same_views():
    views = ViewPipeline([EVERYTHING, View(noise=0.1)], 32, MEAN, STD)
    images, index = batch(), torch.arange(24)
    for got, want in zip(views(images.cuda(), index=index, **WHERE), views(images, index=index, **WHERE), strict=True):
        wrong = (got.cpu() - want).abs() > 1e-3
        # A value at the threshold of the solarisation may fall on its other side.
        assert wrong.float().mean() < 1e-4
