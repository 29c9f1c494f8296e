"""Networks of the agent: representation backbones and the recurrent core that planning runs in."""
