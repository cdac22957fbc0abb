"""Which member of a stitched pipeline answered each call."""

from hemstitch.bridge import stitched


def watched(pipe):
    """The members' names, call by call; the list grows as the pipeline runs."""
    asked = []
    for name, net in stitched(pipe).members.items():
        net.register_forward_hook(lambda *_, name=name: asked.append(name))
    return asked
