"""Drawn scenes with ordered tags: data for the demonstration, for tests and benchmarks."""

from tagrank.data.scenes.composition import KINDS, Scene, draw_scene, make_scenes, write_scenes

__all__ = ["KINDS", "Scene", "draw_scene", "make_scenes", "write_scenes"]
