"""vCPU engines: each runs the guest's instructions and reports writes; page-state semantics live in memory."""
