"""Maps from pictures, as ControlNets and T2I-Adapters read them."""
