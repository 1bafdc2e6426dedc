def render(found, folder):
    pass
