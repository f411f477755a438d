'use strict';

exports.keys = 'keys of the image';
