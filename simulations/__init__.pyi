from simulations.in_process import federate as federate
