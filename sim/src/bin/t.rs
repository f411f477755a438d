use cabloy_sim::check::*;
fn main(){ let a=std::env::args().nth(1).unwrap(); let f=std::env::args().nth(2).unwrap_or_default();
  if a=="s" { for s in scenario::SCENARIOS { if !s.name.contains(&f) {continue}
    let rep=explore(s, control::without(&[]), None);
    println!("{rep} missed {:?}", rep.missed);
    if let Some((l,p))=rep.broken { println!("  BROKEN {}", l.name()); for x in p {println!("    {x}")} } } }
  else { for c in control::CONTROLS { if !c.scenario.contains(&f) {continue}
    let s=scenario::SCENARIOS.iter().find(|s|s.name==c.scenario).unwrap();
    let rep=explore(s, c.rules(), Some(c.law));
    println!("{:?} {:?}: {rep}", c.rules, rep.broken.as_ref().map(|b|b.1.len())); } } }
