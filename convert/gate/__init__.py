"""The parity gate: does an artefact decide like the checkpoint?"""
