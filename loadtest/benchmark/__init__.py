"""How good the load generator is, against targets and against referees."""
