from roofline.graph.op import Place, layer_of


def test_a_module_is_in_the_first_numbered_one_of_its_path() -> None:
    for path, place in [
        ("model.layers.3.mlp.up_proj", Place("model.layers", 3, "mlp.up_proj")),
        ("transformer.h.11", Place("transformer.h", 11, None)),
        ("layers.0.mlp.experts.5.up", Place("layers", 0, "mlp.experts.5.up")),
        ("model.rotary_emb", None),
        ("model.conv1d.proj2", None),
        ("", None),
        ("3.weight", None),
    ]:
        assert layer_of(path) == place, (path, place)
