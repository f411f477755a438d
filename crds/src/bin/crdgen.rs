//! Prints the `CustomResourceDefinition` as YAML, which `crds/cabloyclusters.yaml` holds.

fn main() -> Result<(), serde_yaml::Error> {
    print!("{}", cabloy_crds::resource::crd_yaml()?);
    Ok(())
}
