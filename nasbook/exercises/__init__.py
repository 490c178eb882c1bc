"""Exercises that check themselves: the book's ``nasbook.check(id, answer)``."""

from nasbook.exercises.registry import Exercise, check, get_exercise, grade, list_exercises

__all__ = ["Exercise", "check", "get_exercise", "grade", "list_exercises"]
