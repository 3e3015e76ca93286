import torch

from sam_ds.prompts.draws import object_keys, uniform
from sam_ds.prompts.regions import draw_pixel, tight_box, to_input


def test_every_pixel_of_a_region_is_drawn_equally_often():
    region = torch.zeros(1, 6, 9, dtype=torch.bool)
    region[0, 1, 2:5] = region[0, 4, 8] = region[0, 5, 0] = True
    u = (torch.arange(1000) + 0.5) / 1000
    points, found = draw_pixel(region.expand(1000, -1, -1), u)
    assert found.all()
    x, y = points.long().unbind(-1)
    assert region[0, y, x].all()
    assert (torch.unique(points, dim=0, return_counts=True)[1] == 200).all()


def test_an_empty_region_is_not_found():
    region = torch.zeros(2, 4, 4, dtype=torch.bool)
    region[1, 3, 3] = True
    points, found = draw_pixel(region, torch.tensor([0.5, 0.999]))
    assert found.tolist() == [False, True]
    assert points.tolist() == [[0, 0], [3, 3]]


def test_draws_stay_exact_in_a_large_region():
    region = torch.ones(64, 1024, 1024, dtype=torch.bool)
    u = uniform(object_keys(0, torch.arange(64), torch.arange(64)), 0)[:, 0]
    points, _ = draw_pixel(region, u)
    index = (u.double() * 1024 * 1024).long()
    assert torch.equal(points.long(), torch.stack([index % 1024, index // 1024], -1))


def test_tight_box_and_its_place_in_the_input():
    region = torch.zeros(2, 8, 8, dtype=torch.bool)
    region[0, 2:5, 1:8] = True
    assert tight_box(region).tolist() == [[1, 2, 7, 4], [0, 0, 0, 0]]
    assert to_input(torch.tensor([0.0, 7.0]), 4).tolist() == [1.5, 29.5]
