//! Who is on a segment: the handshake by which ports of one host find each other and set up links.
