"""Where MMT-47 comes from: its folders on the hub, and the data sets it is made of with their terms.

Sources: the data set's card and the authors' instructions; each data set's own page. Terms change and pages are
decisive, not this list; "not stated" means that no licence was found, which is not a permission.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One folder on the hub: `patterns` of the files to fetch, `folder` below the data root they go to."""

    name: str
    repository: str
    patterns: tuple[str, ...]
    holds: str


ROWS = Source("rows", "Kowsher/MMT-47", ("*.parquet", "*.arrow", "*.json", "*.md"), "questions and answers")
IMAGES = Source("images", "Kowsher/MMT-47", ("images/*",), "pictures of the 14 image tasks, as archives")
VIDEOS = Source("videos", "Srikant86/MVTamperBench", ("video/*", "*.md"), "clips of the 19 video tasks, as archives")
SOURCES = {source.name: source for source in (ROWS, IMAGES, VIDEOS)}


@dataclass(frozen=True)
class Constituent:
    """A data set that MMT-47 took rows from."""

    name: str
    tasks: tuple[str, ...]
    terms: str


CONSTITUENTS = (
    Constituent("ChartQA", ("image_test_chartqa",), "GPL-3.0"),
    Constituent("OK-VQA", ("image_test_okvqa",), "CC BY 4.0; its COCO pictures: terms of Flickr"),
    Constituent("ScienceQA", ("image_test_scienceqa",), "CC BY-NC-SA 4.0 (non-commercial)"),
    Constituent("SEED-Bench", ("image_test_seed_bench",), "CC BY-NC 4.0 (non-commercial)"),
    Constituent("text recognition", ("image_test_text_recognition",), "not stated"),
    Constituent("TextVQA", ("image_test_textvqa",), "CC BY 4.0; its Open Images pictures: CC BY 2.0"),
    Constituent("VizWiz-VQA", ("image_test_vizwiz_vqa",), "CC BY 4.0"),
    Constituent("VQA-RAD", ("image_test_vqa_rad",), "CC0 1.0"),
    Constituent("Caltech-101", ("image_test_caltech101",), "CC BY 4.0"),
    Constituent("EuroSAT", ("image_test_eurosat",), "MIT"),
    Constituent("Oxford 102 Flowers", ("image_test_flowers102",), "not stated"),
    Constituent("Oxford-IIIT Pet", ("image_test_pets",), "CC BY-SA 4.0"),
    Constituent("SVHN", ("image_test_svhn",), "non-commercial use only"),
    Constituent("PatchCamelyon", ("image_test_camelyon",), "CC0 1.0"),
    Constituent("ARC", ("text_test_arc_challenge", "text_test_arc_easy"), "CC BY-SA 4.0"),
    Constituent("BoolQ", ("text_test_boolq",), "CC BY-SA 3.0"),
    Constituent("HellaSwag", ("text_test_hellaswag",), "MIT"),
    Constituent("OpenBookQA", ("text_test_openbookqa",), "Apache-2.0"),
    Constituent("PIQA", ("text_test_piqa",), "AFL-3.0"),
    Constituent("Social IQa", ("text_test_social_i_qa",), "CC BY 4.0"),
    Constituent("WinoGrande", ("text_test_winogrande",), "CC BY 4.0"),
    Constituent("SST-2 (GLUE)", ("glue_test_sst2",), "not stated"),
    Constituent("QNLI (GLUE, from SQuAD)", ("glue_test_qnli",), "CC BY-SA 4.0"),
    Constituent("QQP (GLUE)", ("glue_test_qqp",), "Quora's terms (non-commercial)"),
    Constituent("CoLA (GLUE)", ("glue_test_cola",), "not stated"),
    Constituent("MRPC (GLUE)", ("glue_test_mrpc",), "Microsoft's research terms"),
    Constituent("STS-B (GLUE)", ("glue_test_stsb",), "CC BY-SA 4.0 in part; see its page"),
    Constituent(
        "MVTamperBench, over MVBench and its 11 sources of clips",
        (
            "video_test_action_sequence", "video_test_action_prediction", "video_test_action_antonym",
            "video_test_fine_grained_action", "video_test_unexpected_action", "video_test_object_existence",
            "video_test_object_interaction", "video_test_object_shuffle", "video_test_moving_direction",
            "video_test_action_localization", "video_test_scene_transition", "video_test_action_count",
            "video_test_moving_count", "video_test_moving_attribute", "video_test_state_change",
            "video_test_character_order", "video_test_egocentric_navigation", "video_test_episodic_reasoning",
            "video_test_counterfactual_inference",
        ),
        "see its card; each source of clips has its own terms, several for research only",
    ),
)  # fmt: skip


def licences() -> str:
    """The list a person accepts before anything is fetched."""
    width = max(len(one.name) for one in CONSTITUENTS)
    lines = [f"  {one.name.ljust(width)}  {one.terms}" for one in CONSTITUENTS]
    pages = "\n".join(
        f"  https://huggingface.co/datasets/{name}" for name in dict.fromkeys(s.repository for s in SOURCES.values())
    )
    return (
        "MMT-47 is made of these data sets, each under its own terms (as far as they are known here; the data set "
        "cards and each source's own page are decisive):\n" + "\n".join(lines) + "\nData set cards:\n" + pages
    )
