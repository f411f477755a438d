import { BeanBase } from 'vona';
import { Service } from 'vona-module-a-bean';

@Service()
export class ServicePassportAdapter extends BeanBase {
  async setCurrent(passport) {
    return passport;
  }
}
