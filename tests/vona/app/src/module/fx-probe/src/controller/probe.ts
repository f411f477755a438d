import { BeanBase } from 'vona';
import { Passport } from 'vona-module-a-user';
import { Controller, Web } from 'vona-module-a-web';

@Controller('probe')
export class ControllerProbe extends BeanBase {
  /** Says that this process serves the default instance. */
  @Web.post('ping')
  @Passport.public()
  ping() {
    return { pid: process.pid };
  }

  /** Adds the instance that the body describes. */
  @Web.post('addInstance')
  @Passport.public()
  async addInstance() {
    const { name } = await this.$scope.instance.model.instance.insert(this.ctx.request.body);
    return { name };
  }
}
