// Command order fulfils one order: it reserves the goods, charges the customer and ships. Where a step fails for good, or
// the run is cancelled, it undoes what is done, the last first.
package main

import wasman "wasman.dev/guest/v0"

func init() { wasman.Main(fulfil) }

func main() {}

type line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
	Cents    int    `json:"cents"` // of one piece
}

type order struct {
	Card  string `json:"card"`
	Lines []line `json:"lines"`
}

type charge struct {
	Card  string `json:"card"`
	Cents int    `json:"cents"`
}

type fulfilment struct {
	Cents    int    `json:"cents"`
	Receipt  string `json:"receipt"`
	Tracking string `json:"tracking"`
}

// undo is an activity that takes back what another one has done.
type undo struct {
	activity, done string
}

func fulfil() error {
	var in order
	if err := wasman.Input(&in); err != nil {
		return err
	}
	out, undos, err := steps(in)
	if err == nil {
		return wasman.Result(out)
	}
	for i := len(undos) - 1; i >= 0; i-- {
		if err := wasman.Call(undos[i].activity, undos[i].done, nil); err != nil {
			return err
		}
	}
	return err // an error of a cancelled call makes the run cancelled, any other one failed
}

func steps(in order) (out fulfilment, undos []undo, err error) {
	var reservations []string
	for _, line := range in.Lines {
		var reservation string
		if err := wasman.Call("reserve", line, &reservation); err != nil {
			return out, undos, err
		}
		undos = append(undos, undo{"release", reservation})
		reservations = append(reservations, reservation)
		out.Cents += line.Quantity * line.Cents
	}
	if err := wasman.Call("charge", charge{in.Card, out.Cents}, &out.Receipt); err != nil {
		return out, undos, err
	}
	undos = append(undos, undo{"refund", out.Receipt})
	err = wasman.Call("ship", reservations, &out.Tracking)
	return out, undos, err
}
