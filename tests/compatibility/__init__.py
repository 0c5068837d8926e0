"""Which neurons of which libraries, in which styles, are captured: cases, and docs/compatibility.md made from them."""
