// Optional operations that this server does not offer. RFC 7030 sections 4.3.2 and 4.4: 404 and 501 mean "not implemented".

package front

import "context"

func (f *Front) serverKeyGen(context.Context, *exchange) (answer, error) {
	return answer{}, &Error{Kind: SwitchedOff, Detail: "server-side key generation is not on"}
}

func (f *Front) fullCMC(context.Context, *exchange) (answer, error) {
	return answer{}, &Error{Kind: NotSupported, Detail: "full CMC is not supported"}
}
