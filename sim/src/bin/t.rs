use cabloy_redlock::rule::{Rule,Rules};
fn main(){ 
  let r = Rules::without(&[Rule::Rest, Rule::ClockCheck, Rule::Skew]);
  for s in cabloy_sim::check::scenario::SCENARIOS {
    if let Some(f)=std::env::args().nth(1) && !s.name.contains(&f) {continue}
    let rep=cabloy_sim::check::explore(s, r, None);
    println!("{rep} missed {:?}", rep.missed);
    if let Some((l,p))=rep.broken { println!("  BROKEN {}", l.name()); for x in p {println!("    {x}")} }
  } }
