"""Drawn scenes with ordered tags: data for the demonstration, the tests and the benchmarks."""

from tagrank.data.scenes.composition import KINDS, Scene, draw_scene, make_scenes
from tagrank.data.scenes.scene_files import write_scenes

__all__ = ["KINDS", "Scene", "draw_scene", "make_scenes", "write_scenes"]
