//! The Redis servers that the election lives on.
//!
//! * [`script`] turns what the core says into Lua calls, which are in `lua/`.
//! * [`node`] owns the connections to one server.

pub mod node;
pub mod script;

use secrecy::{ExposeSecret as _, SecretString};

/// One Redis server that takes part.
#[derive(Clone, Debug)]
pub struct Master {
    /// What people call it.
    pub name: String,
    /// DNS name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database number.
    pub db: u32,
    /// User of the access control list; the default user if absent.
    pub username: Option<String>,
    /// Password of that user.
    pub password: Option<SecretString>,
}

impl Master {
    /// Whether both are the same place, whatever their names and credentials.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        (&self.host, self.port, self.db) == (&other.host, other.port, other.db)
    }

    /// Whether both are entered in the same way.
    #[must_use]
    pub fn same_access(&self, other: &Self) -> bool {
        let password = |master: &Self| master.password.as_ref().map(|secret| secret.expose_secret().to_owned());
        self.username == other.username && password(self) == password(other)
    }
}

/// All masters of one election, in the order of the file.
pub type Masters = Vec<Master>;
