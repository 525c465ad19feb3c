module PROJECT/guest

go 1.25
