"""Curriculum: how hard each document is (scores), and orders of training made from that."""
