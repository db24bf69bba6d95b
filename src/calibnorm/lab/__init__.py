"""The experiments, behind the command `calibnorm`.

Needs the extra `calibnorm[lab]`; `import calibnorm` never imports this.
"""
