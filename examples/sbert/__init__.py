"""A text encoder trained with in-batch and mined negatives (Reimers and Gurevych 2019, SBERT)."""
