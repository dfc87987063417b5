"""Measuring on a real device over SSH: no agent, no server, no account, and nothing left behind."""
