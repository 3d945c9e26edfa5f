//! Single-producer single-consumer rings in sealed shared memory, with eventfd doorbells.
