"""What one cell of a request, a capture or a row of data can hold."""

InputValue = float | int | str | bool | None
