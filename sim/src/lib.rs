//! The protocol of the agent among nodes that lose their memory and a network that loses, delays and repeats.
//!
//! * [`check`] looks at every state that can be reached within bounds.

pub mod check;
