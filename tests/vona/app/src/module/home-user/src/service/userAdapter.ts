import { BeanBase } from 'vona';
import { Service } from 'vona-module-a-bean';

/** Whoever asks is nobody: this app has no users. */
@Service()
export class ServiceUserAdapter extends BeanBase {
  async createAnonymous() {
    return { id: '0', name: 'anonymous', anonymous: true, activated: false };
  }
}
