"""Lottery tickets: which weights of a network can be trained alone, and where else they can go."""

from secateur.engine.hold import held
from secateur.lottery.elastic import elastic, evenly
from secateur.lottery.graph import GraphTicket, graph_tickets
from secateur.lottery.rounds import Ticket, tickets

__all__ = ["GraphTicket", "Ticket", "elastic", "evenly", "graph_tickets", "held", "tickets"]
