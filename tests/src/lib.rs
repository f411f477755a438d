//! What the tests and the demo run on: real clusters, real Redis servers, and ways to wait for what they do.
//!
//! Everything that is started here ends with whoever started it, also when that is killed: see [`process`] and
//! [`supervisor`].

pub mod cabloy;
pub mod certs;
pub mod chaos;
pub mod cluster;
pub mod events;
pub mod forward;
pub mod images;
pub mod mariadb;
pub mod network;
pub mod npm;
pub mod oci;
pub mod port;
pub mod process;
pub mod redis;
pub mod skip;
pub mod soak;
pub mod stage;
pub mod stillness;
pub mod supervisor;
pub mod tools;
pub mod vona;
pub mod wait;
