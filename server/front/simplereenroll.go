// POST /simplereenroll (RFC 7030 section 4.2.2). Only the certificate that is renewed authorises it; an Authorization header is
// not looked at.

package front

import "context"

func (f *Front) simpleReenroll(ctx context.Context, x *exchange) (answer, error) {
	x.renew = true
	return f.enroll(ctx, x)
}
