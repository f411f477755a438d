//! The key that agents sign their calls with: made once, in a Secret that the operator may neither read nor change.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cabloy_crds::{CabloyCluster, names::SIGNING_KEY};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use rand::Rng as _;
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    build::labels,
    names::{FIELD_MANAGER, agent_config_map},
    validate::Identity,
};

/// How many bytes a key has; Standard Webhooks asks for 24 to 64.
const LENGTH: usize = 32;

/// What came of making a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// There is one now.
    New,
    /// There was one before: ours, or one that somebody has put in its place.
    Before,
    /// The API server does not let us, and says why.
    Refused(String),
}

/// Makes the Secret `name`, unless there is one. The operator cannot look whether there is, so it tries each time: that is
/// how a Secret that was deleted comes back.
///
/// `config_maps` are those of the cluster. The agents' one owns the Secret beside the resource: it goes when no pod needs
/// the key any more, and stays where everything is to stay. The resource alone would take the key from under running pods
/// when it is deleted in the foreground; and the `ConfigMap` alone, when somebody deletes it by hand.
///
/// # Errors
/// The API server does not answer.
pub async fn make_key<'a>(
    client: &Client,
    identity: &Identity,
    name: &str,
    config_maps: impl IntoIterator<Item = &'a ConfigMap>,
) -> Result<Made, kube::Error> {
    let agent_map = agent_config_map(&identity.name);
    let agent_map = config_maps.into_iter().find(|map| map.metadata.name.as_ref() == Some(&agent_map));
    let owners = [Some(owner::<CabloyCluster>(&identity.name, &identity.uid)), agent_map.and_then(owner_of)];
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels(identity)),
            owner_references: Some(owners.into_iter().flatten().collect()),
            ..ObjectMeta::default()
        },
        string_data: Some(BTreeMap::from([(SIGNING_KEY.to_owned(), new_key().expose_secret().to_owned())])),
        ..Secret::default()
    };
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match Api::namespaced(client.clone(), &identity.namespace).create(&parameters, &secret).await {
        Ok(_) => {
            tracing::info!(secret = name, "made a key to sign calls with");
            Ok(Made::New)
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Made::Before),
        // A right that was taken from the operator, a quota, a policy: the rest goes on without.
        Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_invalid() => {
            tracing::debug!(secret = name, message = status.message, "may not make a key to sign calls with");
            Ok(Made::Refused(status.message.clone()))
        }
        Err(error) => Err(error),
    }
}

/// A key as Standard Webhooks writes it.
fn new_key() -> SecretString {
    let mut bytes = [0; LENGTH];
    rand::rng().fill_bytes(&mut bytes);
    format!("whsec_{}", BASE64_STANDARD.encode(bytes)).into()
}

fn owner_of(map: &ConfigMap) -> Option<OwnerReference> {
    Some(owner::<ConfigMap>(&map.name_any(), map.metadata.uid.as_ref()?))
}

/// An owner whose deletion does not wait for what it owns.
fn owner<K: Resource<DynamicType = ()>>(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_enough_and_never_the_same() {
        let (one, other) = (new_key(), new_key());
        let text = one.expose_secret().strip_prefix("whsec_").unwrap();
        assert_eq!(BASE64_STANDARD.decode(text).unwrap().len(), LENGTH);
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
